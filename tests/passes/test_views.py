"""Views by one name and once each, and the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import normfuse
from normfuse.ir.calls import aten, is_call
from normfuse.ir.moves import TURNS
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.positional import positional
from normfuse.passes.views import merge_views

X = torch.randn(2, 3, 4, 5)

NAMED: dict[str, tuple[Callable[[Tensor], Tensor], object]] = {
    "movedim": (lambda x: x.movedim(1, -1), aten.permute.default),
    "movedim back": (lambda x: x.movedim(-1, -3), aten.permute.default),
    "movedim of several": (lambda x: x.movedim((0, -1), (2, 0)), aten.permute.default),
    "moveaxis": (lambda x: torch.moveaxis(x, 3, 1), aten.permute.default),
    "swapaxes": (lambda x: x.swapaxes(1, -1), aten.transpose.int),
    "swapdims": (lambda x: x.swapdims(-2, 0), aten.transpose.int),
    "narrow": (lambda x: x.narrow(-1, 1, 3), aten.slice.Tensor),
    "narrow from the end": (lambda x: x.narrow(1, -2, 2), aten.narrow.default),
}


def traced(run: Callable[[Tensor], Any]) -> torch.fx.GraphModule:
    gm = make_fx(run, pre_dispatch=True, tracing_mode="fake")(X)
    positional(gm)
    return gm


@pytest.mark.parametrize("name", NAMED)
def test_a_view_has_one_name(name: str) -> None:
    run, target = NAMED[name]
    gm = traced(lambda x: run(x).sin())
    canonicalize(gm)
    gm.recompile()
    view = next(node for node in gm.graph.nodes if node.op == "call_function")
    assert view.target is target
    one, other = gm(X), run(X).sin()
    assert torch.equal(one, other)
    assert one.stride() == other.stride()


ONCE: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "alike": (lambda x: x.transpose(1, 2).sin() + x.transpose(1, 2).cos(), 1),
    "by two names": (lambda x: x.movedim(1, -1).sin() + x.permute(0, 2, 3, 1).cos(), 1),
    "of rows": (lambda x: x.view(-1, 5).sin() + x.view(-1, 5).cos(), 1),
    "other axes": (lambda x: x.transpose(1, 2).sin().sum() + x.transpose(1, 3).cos().sum(), 2),
    "of other values": (lambda x: x.transpose(1, 2) + x.sin().transpose(1, 2), 2),
    "returned": (lambda x: (x.transpose(1, 2), x.transpose(1, 2)), 2),
}


@pytest.mark.parametrize("name", ONCE)
def test_equal_views_of_one_value_are_one(name: str) -> None:
    run, left = ONCE[name]
    gm = traced(run)
    canonicalize(gm)
    merge_views(gm.graph)
    gm.recompile()
    torch.testing.assert_close(gm(X), run(X), rtol=0, atol=0)
    assert sum(is_call(node, *TURNS, aten.view.default) for node in gm.graph.nodes) == left


class Written(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.sin()
        before = y.transpose(1, 2)
        y.mul_(2)
        return before.exp() + y.transpose(1, 2)


def test_a_view_shows_what_was_written_since() -> None:
    made = normfuse.rewrite(Written().eval(), (X,))
    torch.testing.assert_close(made.module()(X), Written()(X), rtol=0, atol=0)


@pytest.mark.parametrize(
    "run",
    [
        lambda x: (x.to(torch.float64).view(-1), x.to(torch.float64).t()),
        lambda x: (x.to(torch.float64).sin(), x.to(torch.float64)[0]),
        lambda x: (x.to(torch.float64), x.add_(1.0), x.to(torch.float64).sin()),
    ],
    ids=["both returned", "one returned", "written in between"],
)
def test_equal_casts_have_memory_and_values_of_their_own(run: Any) -> None:
    class Casts(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return run(x)

    x = torch.randn(3, 8)
    expected = Casts()(x.clone())
    found = normfuse.rewrite(Casts().eval(), (x.clone(),), verify="off").module()(x.clone())
    assert all(map(torch.equal, found, expected))
    assert torch._C._is_alias_of(found[0], found[-1]) == torch._C._is_alias_of(expected[0], expected[-1])
