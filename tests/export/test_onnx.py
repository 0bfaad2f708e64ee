"""Rewritten programs as ONNX models: norms stay whole, answers stay, and nothing is left of a failure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import normfuse
from normfuse.cli.app import app
from normfuse.export import onnx as module
from tests.backends.networks import example, prenorm

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def rewritten() -> normfuse.Rewritten:
    return normfuse.rewrite(prenorm().eval().float(), (example().float(),))


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_each_rms_norm_is_one_operator(rewritten: normfuse.Rewritten, tmp_path: Path) -> None:
    count = rewritten.report.after["rms_norm"]
    assert count > 1
    path = rewritten.to_onnx(tmp_path / "model.onnx")
    names = operators(path)
    assert names.count("RMSNormalization") == count
    assert not {"ReduceMean", "LayerNormalization", "Reciprocal"} & set(names)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = example().float()
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = rewritten.module()(x)
    # Some hundred sums of a few dozen products in float32, in other orders.
    assert float((torch.tensor(found) - wanted).norm() / wanted.norm()) < 1000 * 2**-24
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]


def test_several_outputs_and_inputs_by_name(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.norm(self.first(x) * scale)
            return {"y": self.last(y), "index": y.argmax(-1)}

    given = {"scale": torch.rand(5, 1) + 0.5}
    made = normfuse.rewrite(Two().eval(), (torch.randn(5, 4),), given)
    path = made.to_onnx(tmp_path / "two.onnx")
    assert "RMSNormalization" in operators(path)


def test_other_answers_are_refused(
    rewritten: normfuse.Rewritten, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = module.onnx_call

    def off(*args: object) -> object:
        call = run(*args)  # type: ignore[arg-type]
        return lambda *args, **kwargs: tuple(value * 1.001 for value in call())

    monkeypatch.setattr(module, "onnx_call", off)
    path = tmp_path / "model.onnx"
    path.write_text("mine")
    with pytest.raises(normfuse.VerificationError, match="ONNX Runtime answers something else"):
        rewritten.to_onnx(path)
    assert path.read_text() == "mine"
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]
    rewritten.to_onnx(path, check=False)
    assert "RMSNormalization" in operators(path)


def test_an_old_opset_has_no_rms_norm(rewritten: normfuse.Rewritten, tmp_path: Path) -> None:
    names = operators(rewritten.to_onnx(tmp_path / "old.onnx", opset_version=20))
    assert "RMSNormalization" not in names
    assert "ReduceMean" in names


def test_missing_packages_are_named(
    rewritten: normfuse.Rewritten, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(normfuse.NormfuseError, match=r"pip install 'normfuse\[onnx\]'"):
        rewritten.to_onnx(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_command_line(rewritten: normfuse.Rewritten, tmp_path: Path) -> None:
    source, made = tmp_path / "in.pt2", tmp_path / "out.onnx"
    torch.export.save(torch.export.export(prenorm().eval().float(), (example().float(),)), source)
    result = CliRunner().invoke(app, ["rewrite", str(source), "-o", str(made)])
    assert result.exit_code == 0, result.output
    count = rewritten.report.after["rms_norm"]
    assert f"with {count} RMSNormalization; it ran in ONNX Runtime" in " ".join(result.output.split())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["in.pt2", "out.onnx"]


@pytest.mark.slow
def test_ahead_of_time(rewritten: normfuse.Rewritten, tmp_path: Path) -> None:
    path = rewritten.to_aoti(tmp_path / "package.pt2")
    x = example().float()
    found = torch._inductor.aoti_load_package(str(path))(x)
    wanted = rewritten.module()(x)
    assert float((found - wanted).norm() / wanted.norm()) < 1000 * 2**-24


def test_a_package_has_its_own_suffix(rewritten: normfuse.Rewritten, tmp_path: Path) -> None:
    with pytest.raises(normfuse.InputError, match=r"has to be a \.pt2 file"):
        rewritten.to_aoti(tmp_path / "package.so")


def test_a_failure_is_told_in_the_words_of_its_first_cause(monkeypatch, tmp_path: Path) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        try:
            raise AssertionError("heads differ")
        except AssertionError as error:
            raise RuntimeError("\x1b[96mThis is step 3/3\x1b[0m of exporting. Next steps:\n- ...") from error

    made = normfuse.rewrite(nn.Linear(3, 3).eval(), (torch.randn(2, 3),), verify="off")
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(normfuse.CaptureError, match=r"^ONNX export failed: AssertionError: heads differ$"):
        made.to_onnx(tmp_path / "model.onnx")


def test_a_full_disk_is_no_fault_of_the_exporter(monkeypatch, tmp_path: Path) -> None:
    from torch.onnx import ONNXProgram

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    made = normfuse.rewrite(nn.Linear(3, 3).eval(), (torch.randn(2, 3),), verify="off")
    monkeypatch.setattr(ONNXProgram, "save", full)
    with pytest.raises(normfuse.InputError, match=r"^cannot write .*model\.onnx: No space left on device$"):
        made.to_onnx(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
