"""In-place updates of fresh values become ordinary operators; all others stay what they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import normfuse
from normfuse.ir.calls import mutates
from normfuse.passes.functionalize import functionalize
from tests.patterns.capturing import program_of


def run(function: Callable[..., object], *inputs: torch.Tensor) -> int:
    """How many updates remain; the graph must do what the function does, to its inputs as well."""
    gm = program_of(function, inputs, 0).gm
    functionalize(gm)
    gm.graph.lint()
    gm.recompile()
    ours, theirs = [[i.clone() for i in inputs] for _ in range(2)]
    found, expected = gm(*ours), function(*theirs)
    for a, b in zip((*found, *ours), (*expected, *theirs), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    return sum(mutates(n) for n in gm.graph.nodes)


X, R = torch.randn(4, 6), torch.randn(4, 6)

REPLACED = {
    "add": lambda x, r: ((x * 2).add_(r),),
    "iadd and a later read": lambda x, r: (_iadd(x * 2, r) + 1,),
    "read under the old name": lambda x, r: (_named(x * 2, r),),
    "two updates in a row": lambda x, r: ((x * 2).add_(r).mul_(3),),
    "a view taken afterwards": lambda x, r: ((x * 2).add_(r)[:, 1:].sin(),),
    "a view read before": lambda x, r: (_view_before(x * 2, r),),
    "relu": lambda x, r: (torch.relu_(x - r),),
    "transposed memory": lambda x, r: ((x * 2).t().add_(r.t()),),
    "a keyword": lambda x, r: ((x * 2).add_(r, alpha=2),),
    "a keyword that is needed": lambda x, r: ((x * 2).clamp_(max=0.5),),
    "a tensor by keyword": lambda x, r: (torch.ops.aten.add_.Tensor(x * 2, other=r),),
}

KEPT = {
    "an input": lambda x, r: (x.add_(r),),
    "a view of an input": lambda x, r: (x[1:].add_(r[1:]),),
    "an older view is read afterwards": lambda x, r: (_old_view(x * 2, r),),
    "part of a value": lambda x, r: (_part(x * 2, r),),
    "the value itself under another name": lambda x, r: (_alias(x * 2, r),),
    "an operand of the same memory": lambda x, r: (_self_operand(x * 2),),
    "an operand of a wider type": lambda x, r: ((x * 2).bfloat16().add_(r),),
    "memory with gaps": lambda x, r: (_gaps(x, r),),
    "memory of another size": lambda x, r: ((x * 2).resize_(2, 6),),
    "the memory of another value": lambda x, r: (torch.ops.aten.set_.source_Tensor(x * 2, r.clone()),),
    "random numbers": lambda x, r: ((x * 2).uniform_(3.0, 3.0),),
}


def _iadd(y, r):
    y += r
    return y


def _named(y, r):
    y.add_(r)
    return y.sin()


def _view_before(y, r):
    z = y[1:].cos()
    y.add_(r)
    return y[1:] + z


def _old_view(y, r):
    old = y[1:]
    y.add_(r)
    return old.sin()


def _part(y, r):
    y[1:].add_(r[1:])
    return y.sin()


def _alias(y, r):
    other = y.view(24)
    y.add_(r)
    return other + 1


def _gaps(x, r):
    y = x.new_empty_strided((4, 6), (12, 2))
    y.fill_(0.0)
    return y.add_(r)


def _self_operand(y):
    y.add_(y.view(4, 6))
    return y.sin()


@pytest.mark.parametrize("name", sorted(REPLACED))
def test_replaced(name: str) -> None:
    assert run(REPLACED[name], X, R) == 0


@pytest.mark.parametrize("name", sorted(KEPT))
def test_kept(name: str) -> None:
    assert run(KEPT[name], X, R) > 0


def test_a_parallel_block_with_an_in_place_sum_converts() -> None:
    """Falcon adds the attention's output in place onto the MLP's."""

    class Parallel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.final = torch.nn.LayerNorm(8), torch.nn.LayerNorm(8)
            self.embed, self.a, self.b = (torch.nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            h = self.norm(x)
            y = self.b(torch.relu(h))
            y += self.a(h)
            return self.final(x + y)

    model, x = Parallel().double().eval(), torch.randn(3, 5, 8, dtype=torch.float64)
    rewritten = normfuse.rewrite(model, (x,))
    assert rewritten.report.after == {"rms_norm": 2}
    with torch.no_grad():
        assert torch.allclose(rewritten.module()(x), model(x), rtol=1e-12)


def test_gradients_flow_through_what_is_copied_into_fresh_memory() -> None:
    """``copy`` has no derivative, and ``copy_`` has one."""

    class Copies(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(4, 6).copy_(self.norm(x)) * 2

    model, x = Copies(), X.clone()
    torch.compile(model, backend="normfuse", options={"normfuse.inner": "aot_eager"})(x).sum().backward()
    assert model.norm.bias.grad is not None
    assert torch.equal(model.norm.bias.grad, torch.full((6,), 8.0))


def test_an_update_whose_operands_have_names_stays() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = X
    twice = graph.call_function(torch.ops.aten.mul.Tensor, (x, 2.0))
    written = graph.call_function(torch.ops.aten.add_.Tensor, (), {"self": twice, "other": x})
    for node in (twice, written):
        node.meta["val"] = X.clone()
    graph.output(written)
    assert functionalize(torch.fx.GraphModule({}, graph)) == 0
