"""Graphs with operators that do more than their schemas say: views that are written to, weights made anew."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfuse
from tests.passes.building import EXACT, distance, evaluate, normal, randomised

D = 6


class Written(nn.Module):
    """A norm of values that are written to through a view."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.view = view
        self.lin, self.norm, self.out = nn.Linear(5, D), nn.LayerNorm(D), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lin(x)
        seen = self.view(h)
        seen += torch.arange(seen.numel(), dtype=seen.dtype).view(seen.shape)
        return self.out(self.norm(h))


VIEWS = {
    "einsum": lambda h: torch.einsum("btc->bct", h),
    "a diagonal by einsum": lambda h: torch.einsum("btt->bt", h[..., :3]),
    "broadcast_tensors": lambda h: torch.broadcast_tensors(h)[0],
    "atleast_3d": lambda h: torch.atleast_3d([h])[0],
    "sum_to_size": lambda h: h.sum_to_size(2, 3, D),
    "to_dense": lambda h: h.to_dense(),
    "cartesian_prod": lambda h: torch.cartesian_prod(h.view(-1)),
    "unsafe_chunk": lambda h: torch.unsafe_chunk(h, 2)[0],
    "dropout": lambda h: F.dropout(h, 0.5, False),
    "alpha_dropout": lambda h: F.alpha_dropout(h, 0.5, False),
    "transpose": lambda h: h.transpose(0, 1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_write_through_a_view_of_a_program_from_a_file(name: str) -> None:
    """The values of such a program share no memory that a rewrite could compare."""
    model = randomised(Written(VIEWS[name]))
    args = (normal(2, 3, 5),)
    wanted = evaluate(copy.deepcopy(model), args)
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, args, strict=False), file)
    file.seek(0)
    made = normfuse.rewrite(torch.export.load(file), verify="off")
    assert distance(evaluate(made.module(), args), wanted) <= EXACT


CALLS = [0]


@torch.library.custom_op("normfuse_undeclared::counted", mutates_args=())
def counted(w: Tensor) -> Tensor:
    """Another value at every call."""
    CALLS[0] += 1
    return w * CALLS[0]


@torch.library.custom_op("normfuse_undeclared::counted_in_place", mutates_args={"w"})
def counted_in_place(w: Tensor) -> None:
    CALLS[0] += 1
    w.mul_(CALLS[0])


counted.register_fake(torch.empty_like)


def in_place(w: Tensor) -> Tensor:
    made = w.clone()
    torch.ops.normfuse_undeclared.counted_in_place(made)
    return made


#: How a weight is made at each call; whether that is a custom operator that counts.
MADE: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "a custom operator": (lambda w: torch.ops.normfuse_undeclared.counted(w), True),
    "a custom operator, scaled": (lambda w: torch.ops.normfuse_undeclared.counted(w.t()).t() * 2, True),
    "a custom operator in place": (in_place, True),
    "random numbers added": (lambda w: w + torch.rand_like(w), False),
    "random entries": (lambda w: w * torch.bernoulli(torch.full_like(w, 0.5)), False),
    "dropout of a weight": (lambda w: F.dropout(w, 0.5, True), False),
    "noise": (lambda w: w + torch.randn(w.shape, dtype=w.dtype), False),
}


class MadeAnew(nn.Module):
    """The weight that writes what norms read, or reads what they made, is made by ``make``."""

    def __init__(self, make: Callable[[Tensor], Tensor], place: str) -> None:
        super().__init__()
        self.make, self.place = make, place
        self.lin, self.norm, self.out = nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, 3)
        self.bn = nn.BatchNorm1d(D)

    def forward(self, x: Tensor) -> Tensor:
        made = self.make(self.lin.weight)
        if self.place == "layer norm":
            return self.out(self.norm(F.linear(x, made, self.lin.bias)))
        if self.place == "before":
            return torch.relu(self.bn(F.linear(x, made, self.lin.bias)))
        if self.place == "behind":
            return F.linear(self.bn(torch.relu(x)), made, self.lin.bias)
        return torch.relu(
            F.batch_norm(self.lin(x), made[0], self.bn.running_var, None, None, False, 0.0, 0.1)
        )


PLACES = ("layer norm", "before", "behind", "statistics")


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("place", PLACES)
def test_a_weight_that_is_made_anew_at_each_call_is_never_computed_ahead(name: str, place: str) -> None:
    make, counts = MADE[name]
    model = randomised(MadeAnew(make, place))
    args = (normal(4, D),)
    made = normfuse.rewrite(copy.deepcopy(model), args, verify="off")
    assert [s.becomes for s in made.report.sites] == [s.kind for s in made.report.sites]
    if counts or place == "layer norm":
        refusal = made.report.sites[0].refusal
        assert refusal is not None
        assert refusal.code in ("impure_operator", "mutated", "dropout", "weight_mutated"), refusal
    compiled = [_compiled(copy.deepcopy(model))] if place == "layer norm" else []
    for run in (made.module(), *compiled):
        CALLS[0] = 2
        found = [evaluate(run, args), evaluate(run, args)]
        assert CALLS[0] == (4 if counts else 2)
        CALLS[0] = 2
        wanted = [evaluate(model, args), evaluate(model, args)]
        for f, w in zip(found, wanted, strict=True):
            assert distance(f, w) <= EXACT


def _compiled(model: nn.Module) -> Callable[..., object]:
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options={"normfuse.inner": "eager"})
    evaluate(fast, (normal(4, D),))
    return fast
