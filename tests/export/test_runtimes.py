"""Rewritten programs in OpenVINO and ExecuTorch, as docs/offline.md shows; where these are installed."""

from __future__ import annotations

import pytest
import torch

import normfuse
from tests.backends.networks import example, prenorm

#: Sums in float32 in other orders than PyTorch's, a few dozen products deep.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def rewritten():
    model, x = prenorm(dtype=torch.float32), example(dtype=torch.float32)
    with torch.no_grad():
        return normfuse.rewrite(model, (x,)), x, model(x)


def test_openvino(rewritten):
    openvino = pytest.importorskip("openvino")
    program, x, expected = rewritten
    assert program.report.after.keys() == {"rms_norm"}
    model = openvino.convert_model(program.program)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.from_numpy(compiled(x.numpy())[0])
    assert torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE)


def test_executorch(rewritten, tmp_path):
    exir = pytest.importorskip("executorch.exir")
    xnnpack = pytest.importorskip("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    runtime = pytest.importorskip("executorch.runtime")
    program, x, expected = rewritten
    lowered = exir.to_edge_transform_and_lower(
        program.program, partitioner=[xnnpack.XnnpackPartitioner()]
    ).to_executorch()
    (tmp_path / "model.pte").write_bytes(lowered.buffer)
    method = runtime.Runtime.get().load_program(tmp_path / "model.pte").load_method("forward")
    (found,) = method.execute([x])
    assert torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE)
