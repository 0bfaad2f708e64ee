"""What ``torch.compile`` sees of the operators: the kernels themselves, for any number of rows."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

pytest.importorskip("triton", reason="the kernels are written in Triton")

import triton

from bench.gpu_stub import Driver
from normfuse import kernels
from normfuse.kernels import device, operators
from normfuse.kernels.linear_operator import linear


@pytest.fixture(autouse=True)
def _target(monkeypatch):
    """To find out what a kernel writes to, PyTorch has Triton translate it, for the device that is there."""
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())


class _SeenError(Exception):
    """The graph is there; running its kernels would take a device."""


def _graph(function, *arguments):
    seen = []

    def keep(gm, inputs):
        seen.append(gm)
        raise _SeenError

    fast = torch.compile(function, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
    with pytest.raises(Exception, match="_SeenError"):
        fast(*arguments)
    return seen[0].graph


def _kernels(graph):
    return [node for node in graph.nodes if "triton_kernel_wrapper" in str(node.target)]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_norm_is_one_kernel_and_keeps_the_number_of_rows_open(kind):
    x, weight = torch.randn(6, 32, requires_grad=True), torch.randn(32, requires_grad=True)
    torch._dynamo.mark_dynamic(x, 0)
    graph = _graph(
        lambda x, w: operators.norm(x, w, w, x, None, kind, 1e-5, 0.0, 1, False, True)[:2], x, weight
    )
    assert len(_kernels(graph)) == 1
    shapes = [
        node.meta["val"].shape
        for node in graph.nodes
        if node.op == "placeholder" and node.name == "primals_2"
    ]
    assert isinstance(shapes[0][0], torch.SymInt), shapes
    assert not any("normfuse" in str(node.target) for node in graph.nodes)


def test_a_product_is_one_kernel_and_nothing_else_reads_the_rows():
    graph = _graph(lambda x, m: linear(x, m, None, None, 1e-5)[0], torch.randn(6, 32), torch.randn(8, 32))
    assert len(_kernels(graph)) == 1
    assert not any("mm" in str(node.target) for node in graph.nodes)


def test_shapes_of_what_is_not_asked_for():
    x = torch.randn(2, 3, 8)
    with torch._subclasses.fake_tensor.FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        y, total, centre, rstd = operators.norm(fake, None, None, None, None, 0, 1e-5, 0.0, 2, False, True)
    assert y.shape == x.shape
    assert total.shape == centre.shape == (0,)
    assert rstd.shape == (6, 2)
    assert rstd.dtype == torch.float32


def test_compiled_calls_are_kernels_but_where_they_are_differentiated_forward(monkeypatch):
    """Dynamo follows the functions down to the operators; the reference is what has derivatives forward."""
    monkeypatch.setattr(device, "_INTERPRETED", True)

    def block(x, m):
        y, h = kernels.rms_norm(x, residual=x)
        return kernels.linear_rms_norm(h, m, residual=y)

    def forward(x, m):
        return torch.func.jvp(lambda x: block(x, m), (x,), (x,))

    seen = []

    def keep(gm, inputs):
        seen.append([str(node.target) for node in gm.graph.nodes])
        raise _SeenError

    for function in (block, forward):
        with pytest.raises(Exception, match="_SeenError"):
            torch.compile(function, backend=keep, fullgraph=True)(torch.randn(3, 8), torch.randn(8, 8))
    called, differentiated = ([name for name in names if "normfuse" in name] for names in seen)
    assert called == ["normfuse.norm.default", "normfuse.linear_rms_norm.default"]
    assert differentiated == []
