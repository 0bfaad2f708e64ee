"""A norm in the product that reads it, with the sum in front: where that is written, and where it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

pytest.importorskip("triton", reason="the kernels are written in Triton")

from normfuse.kernels import device
from normfuse.lowering import choose
from normfuse.lowering.choose import lower
from normfuse.lowering.product import ADD_PRODUCT, PRODUCT
from normfuse.options import Options
from normfuse.passes.legal_form import LegalForm
from normfuse.passes.work import Work
from tests.patterns.capturing import lifted

WIDTH = 8
SUM = "linear_rms_norm with the sum"


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (WIDTH,), eps=1e-6)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_INTERPRETED", True)
    monkeypatch.setattr(choose, "_WAYS", {"deferred": (ADD_PRODUCT, PRODUCT)})


def lowered(function: Callable[..., object], rows: int = 3) -> Work:
    inputs = (torch.randn(2, rows, WIDTH), torch.randn(2, rows, WIDTH), torch.randn(5, WIDTH), torch.randn(5))
    work = lifted(function, inputs)  # type: ignore[arg-type]
    work.lowered = lower(work.program, work.sites, Options(lower="deferred"))
    work.program.gm.graph.lint()
    LegalForm().stage("lower", work)
    return work


def calls(work: Work, name: str) -> list[Node]:
    return [node for node in work.program.gm.graph.nodes if name in str(node.target)]


def test_one_kernel_adds_scales_and_multiplies() -> None:
    def block(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        h = x + r
        return F.linear(norm(h), w, b).tanh(), h.sin()

    work = lowered(block)
    (made,) = calls(work, "linear_rms_norm")
    x, r, w, b = (n for n in work.program.gm.graph.nodes if n.op == "placeholder")
    assert made.args == (x, w, b, r, 1e-6)
    assert not calls(work, "aten.add")
    assert not calls(work, "aten.linear")
    (sine,) = calls(work, "sin")
    assert [n.args for n in sine.all_input_nodes] == [(made, 1)]


def test_the_first_product_adds_for_the_others() -> None:
    def block(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
        h = x + r
        y = norm(h)
        return F.linear(y, w) * F.linear(y, w, b) * F.linear(y.view(-1, WIDTH), w).view(2, 3, 5)

    first, *others = calls(lowered(block), "linear_rms_norm")
    assert isinstance(first.args[3], Node)
    assert len(others) == 2
    assert all(one.args[3] is None for one in others)


def test_readers_of_the_sum_in_front_of_the_product_read_the_same() -> None:
    def block(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
        h = x + r
        gate = h.sum(-1, keepdim=True).sigmoid()
        return F.linear(norm(h), w, b) * gate

    work = lowered(block)
    (made,) = calls(work, "linear_rms_norm")
    (total,) = calls(work, "aten.sum")
    assert made < total


def _without_a_sum(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(norm(x.tanh()), w)


def _a_sum_of_rows_alone(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(norm(x + r[:, :1]), w)


def _doubled(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(norm(torch.add(x, r, alpha=2)), w)


def _the_last_row(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(norm(x + r)[:, -1:], w)


def _a_matrix_that_is_made_later(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = x + r
    return F.linear(norm(h), w * h.mean())


@pytest.mark.parametrize(
    "function", [_without_a_sum, _a_sum_of_rows_alone, _doubled, _the_last_row, _a_matrix_that_is_made_later]
)
def test_the_product_alone_takes_the_norm(function: Callable[..., Tensor]) -> None:
    work = lowered(function)
    (made,) = calls(work, "linear_rms_norm")
    assert made.args[3] is None


def test_a_bias_that_is_repeated_stays() -> None:
    def block(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.linear(norm(x + r), w, b[:1])

    work = lowered(block)
    assert not calls(work, "linear_rms_norm")
    assert "is not one number for each output" in work.report.sites[0].lowering


def test_many_rows_are_added_by_themselves() -> None:
    def block(x: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.linear(norm(x + r), w, b)

    for rows, adds in ((256, True), (257, False)):
        (made,) = calls(lowered(block, rows), "linear_rms_norm")
        assert (made.args[3] is not None) is adds
