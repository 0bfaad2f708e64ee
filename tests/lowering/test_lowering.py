"""Which norms become kernels, with which operands, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import normfuse
from normfuse.kernels import device
from normfuse.kernels.arguments import WIDEST
from normfuse.lowering import kernel
from normfuse.lowering.choose import lower
from normfuse.options import Options
from normfuse.passes.work import Work
from tests.patterns.capturing import lifted

pytest.importorskip("triton", reason="the kernels are written in Triton")
WIDTH = 8


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs alone are looked at here; tests/kernels/interpreted runs them."""
    monkeypatch.setattr(device, "_INTERPRETED", True)


def lowered(function: Callable[..., Tensor], *inputs: Tensor) -> Work:
    work = lifted(function, inputs or (torch.randn(3, WIDTH), torch.randn(WIDTH), torch.randn(WIDTH)))
    lower(work.program, work.sites, Options(lower="triton"))
    return work


def calls(work: Work) -> list[str]:
    nodes = work.program.gm.graph.nodes
    return [str(n.target) for n in nodes if n.op == "call_function" and "getitem" not in str(n.target)]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b), kernel.LAYER),
        (lambda x, w, b: F.rms_norm(x, (WIDTH,), w, 1e-6), kernel.RMS),
        (lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + w), kernel.RMS),
        (
            lambda x, w, b: x * torch.rsqrt((x.square().sum(-1, True) + x.sum(-1, True) ** 2) / 9 + 1e-6),
            kernel.CRMS,
        ),
    ],
)
def test_norms_become_kernels(function: Callable[..., Tensor], kind: int) -> None:
    work = lowered(function)
    assert [site.lowering for site in work.report.sites] == ["triton"]
    (node,) = [n for n in work.program.gm.graph.nodes if "normfuse.norm" in str(n.target)]
    assert node.args[5] == kind
    assert [n for n in calls(work) if "norm" in n or "mean" in n or "rsqrt" in n] == ["normfuse.norm.default"]


def test_the_sum_before_a_norm_is_the_kernels() -> None:
    def block(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        h = x + y
        z = h.tanh()
        return F.rms_norm(h, (WIDTH,), w, 1e-6) + z * h

    work = lowered(block, torch.randn(3, WIDTH), torch.randn(3, WIDTH), torch.randn(WIDTH))
    assert calls(work).count("aten.add.Tensor") == 1
    (node,) = [n for n in work.program.gm.graph.nodes if "normfuse.norm" in str(n.target)]
    assert [getattr(n, "name", n) for n in node.args[:4]] == ["x_1", "w_1", None, "y_1"]
    total = next(n for n in node.users if n.args[1] == 1)
    assert {str(n.target) for n in total.users} == {"aten.tanh.default", "aten.mul.Tensor"}
    work.program.gm.graph.lint()


def written_weight(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    h = x + y
    w[:2].mul_(2.0)
    return F.rms_norm(h, (WIDTH,), w, 1e-6)


def written_bias(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    h = x + y
    w[:2].mul_(2.0)
    return F.layer_norm(h, (WIDTH,), None, w)


def written_sum(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    h = x + y
    h[:1].mul_(2.0)
    return F.rms_norm(h, (WIDTH,), w, 1e-6)


@pytest.mark.parametrize(
    "function",
    [
        written_weight,
        written_bias,
        written_sum,
        lambda x, y, w: F.rms_norm(x + 2 * y.sum(), (WIDTH,), w, 1e-6),
        lambda x, y, w: F.rms_norm(torch.add(x, y, alpha=2), (WIDTH,), w, 1e-6),
        lambda x, y, w: F.rms_norm(x + x, (WIDTH,), w, 1e-6),
        lambda x, y, w: F.rms_norm(x + y[:1], (WIDTH,), w, 1e-6),
        lambda x, y, w: F.rms_norm(x + y.bfloat16(), (WIDTH,), w, 1e-6),
        lambda x, y, w: F.rms_norm(x + y.t().contiguous().t(), (WIDTH,), w, 1e-6),
        lambda x, y, w: F.rms_norm(x + y, (WIDTH,), (x + y)[0], 1e-6),
    ],
    ids=[
        "written weight",
        "written bias",
        "written sum",
        "number",
        "factor",
        "doubled",
        "broadcast",
        "dtype",
        "order",
        "weight behind it",
    ],
)
def test_other_sums_stay(function: Callable[..., Tensor]) -> None:
    work = lowered(function, torch.randn(WIDTH, WIDTH), torch.randn(WIDTH, WIDTH), torch.randn(WIDTH))
    (node,) = [n for n in work.program.gm.graph.nodes if "normfuse.norm" in str(n.target)]
    assert node.args[3] is None
    assert "aten.add.Tensor" in calls(work)
    work.program.gm.graph.lint()


def in_columns(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            lambda x, w, b: F.layer_norm(x.double(), (WIDTH,)),
            "no kernel takes torch.float32 and gives torch.float64",
        ),
        (lambda x, w, b: F.layer_norm(x, (3, WIDTH)), "no kernel computes a layer_norm of this form"),
        (lambda x, w, b: F.group_norm(x, 2), "no kernel computes a group_norm of this form"),
        (lambda x, w, b: F.normalize(x, dim=-1), "no kernel computes a l2_norm of this form"),
        (lambda x, w, b: F.layer_norm(x, (WIDTH,), eps=0.0), "takes the eps or the divisor"),
        (
            lambda x, w, b: x / (x.pow(2).mean(-1, keepdim=True).sqrt() + 1e-6),
            "takes the eps or the divisor",
        ),
        (lambda x, w, b: F.layer_norm(x, (WIDTH,)) * 3.0, "its factor, weight or order"),
        (lambda x, w, b: in_columns(x.t()), "its factor, weight or order"),
        (lambda x, w, b: F.layer_norm(x.repeat(1, WIDEST), (WIDTH * WIDEST,)), "rows of a known width"),
        (lambda x, w, b: F.layer_norm(x.double() + 1, (WIDTH,)), "no kernel takes torch.float64"),
    ],
)
def test_what_no_kernel_computes_goes_to_inductor(function: Callable[..., Tensor], reason: str) -> None:
    work = lowered(function)
    assert [site.lowering.startswith("inductor: ") for site in work.report.sites] == [True]
    assert reason in work.report.sites[0].lowering
    assert "normfuse.norm.default" not in calls(work)


def test_without_a_gpu_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = torch.nn.LayerNorm(WIDTH)
    fast = torch.compile(model, backend="normfuse", options={"normfuse.lower": "triton"})
    with pytest.raises(normfuse.OptionError, match="no norm of the graph is on a GPU"):
        fast(torch.randn(3, WIDTH))
    with pytest.raises(normfuse.OptionError, match=r"lower is for torch\.compile"):
        normfuse.rewrite(model.eval(), (torch.randn(3, WIDTH),), lower="triton")


@pytest.mark.parametrize("way", ["auto", "inductor"])
def test_every_norm_goes_to_inductor_unless_asked(way: str) -> None:
    inputs = torch.randn(3, WIDTH), torch.randn(WIDTH)
    work = lifted(lambda x, w: F.layer_norm(x, (WIDTH,), w), inputs)
    lower(work.program, work.sites, Options(lower=way))
    assert [site.lowering for site in work.report.sites] == ["inductor"]
    assert "normfuse.norm.default" not in calls(work)
