"""Moves of axes around a stored norm go with it, and only where nothing reads what they bring about."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfuse
from tests.passes.building import distance

#: Two sums of at most 12 products in float64: far below this many units of 1.1e-16.
EXACT = 1e-13
MOVES = ("transpose", "permute", "clone", "contiguous", "reshape", "view", "unsqueeze", "squeeze", "flatten")

Form = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A linear layer, a batch norm in some form, and another linear layer or what is given instead."""

    def __init__(self, form: Form, behind: Callable[[Net, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.behind = form, behind
        self.before, self.after, self.norm = nn.Linear(4, 6), nn.Linear(6, 5), nn.BatchNorm1d(6)
        self.square = nn.Linear(7, 7)
        self.alpha, self.alphas = nn.Parameter(torch.rand(1)), nn.Parameter(torch.rand(6))
        for value in (self.norm.weight.data, self.norm.bias.data, self.norm.running_var):
            value.uniform_(0.5, 1.5)
        self.double().eval()

    @property
    def statistics(self) -> tuple[Tensor | None, ...]:
        norm = self.norm
        return norm.running_mean, norm.running_var, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        made = self.before(x)
        y = self.form(self, made.sigmoid() if self.behind is None else made)
        return self.after(y) if self.behind is None else self.behind(self, y)


def moved(self: Net, x: Tensor) -> Tensor:
    return self.norm(x.transpose(1, 2)).transpose(1, 2)


def copied(self: Net, x: Tensor) -> Tensor:
    y = self.norm(x.clone().permute(0, 2, 1).contiguous().reshape(2, 6, 7).unsqueeze(-1).squeeze(-1))
    return y.reshape(2, 6, 7).permute(0, 2, 1).contiguous()


def laid(self: Net, x: Tensor) -> Tensor:
    """The result lies with its channels first."""
    return self.norm(x.transpose(1, 2).contiguous()).transpose(1, 2)


def joined(self: Net, x: Tensor) -> Tensor:
    return self.norm(x.reshape(-1, 6)).view(2, 7, 6)


def images(self: Net, x: Tensor) -> Tensor:
    """Channels last and back, as of images."""
    y = x.unflatten(1, (7, 1)).permute(0, 3, 1, 2)
    return F.batch_norm(y, *self.statistics).permute(0, 2, 3, 1).flatten(1, 2)


def heads(self: Net, x: Tensor) -> Tensor:
    """The channels are those of two axes."""
    y = x.view(2, 7, 2, 3).flatten(2).mT
    return self.norm(y).mT.view(2, 7, 2, 3).flatten(2)


def negative(self: Net, x: Tensor) -> Tensor:
    return self.norm(x.mT).transpose(-1, -2)


def skip_outside(self: Net, x: Tensor) -> Tensor:
    return moved(self, x) + self.alpha * x


def skip_inside(self: Net, x: Tensor) -> Tensor:
    x = x.transpose(1, 2)
    return (x * self.alpha + self.norm(x)).transpose(1, 2)


def skip_of_each_channel(self: Net, x: Tensor) -> Tensor:
    return copied(self, x) + x * self.alphas


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (moved, "batch_norm"),
        (copied, "batch_norm"),
        (laid, "batch_norm"),
        (joined, "batch_norm"),
        (images, "batch_norm"),
        (negative, "batch_norm"),
        (skip_outside, "rep_batch_norm"),
        (skip_inside, "rep_batch_norm"),
        (skip_of_each_channel, "rep_batch_norm"),
    ],
)
def test_norms_vanish_with_their_moves(form: Form, kind: str) -> None:
    model, x = Net(form), torch.randn(2, 7, 4, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,))
    assert made.report.found == {kind: 1}
    assert made.report.after == {}
    assert distance(made.module()(x), model(x)) <= EXACT
    calls = [str(n.target) for n in made.program.graph.nodes if n.op == "call_function"]
    assert [c for c in calls if any(move in c for move in MOVES)] == []


def flat(self: Net, y: Tensor) -> Tensor:
    """A view that the order of the transposed value alone allows."""
    return self.square(y.transpose(1, 2).view(12, 7))


def square(self: Net, y: Tensor) -> Tensor:
    return self.after(y.reshape(2, 7, 6).sigmoid())


def returned(self: Net, y: Tensor) -> Tensor:
    return y


def other_axis(self: Net, x: Tensor) -> Tensor:
    """Turned back by other axes than it was turned: the result has its channels first."""
    return self.norm(x.transpose(1, 2)).reshape(2, 7, 6)


@pytest.mark.parametrize("behind", [flat, square, returned])
@pytest.mark.parametrize("form", [moved, copied, laid, images, heads, other_axis, skip_outside])
def test_values_and_order_are_kept(form: Form, behind: Callable[[Net, Tensor], Tensor]) -> None:
    if behind is flat and form is not laid:
        pytest.skip("no such view")
    model, x = Net(form, behind), torch.randn(2, 7, 4, dtype=torch.float64)
    program = torch.export.export(model, (x,))
    made = normfuse.rewrite(program)
    # Of values that do not lie row after row, an eager batch norm makes another order than a traced one.
    traced = next(n for n in program.graph.nodes if n.op == "output").all_input_nodes[0].meta["val"]
    found, wanted = made.module()(x), model(x)
    assert distance(found.contiguous(), wanted.contiguous()) <= EXACT
    assert found.stride() in (traced.stride(), wanted.stride())


def test_two_norms_one_after_the_other_share_no_moves() -> None:
    def twice(self: Net, x: Tensor) -> Tensor:
        return copied(self, copied(self, x))

    model, x = Net(twice), torch.randn(2, 7, 4, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,))
    assert made.report.found == {"batch_norm": 2}
    assert made.report.after == {}
    assert distance(made.module()(x), model(x)) <= EXACT
    calls = [str(n.target) for n in made.program.graph.nodes if n.op == "call_function"]
    assert [c for c in calls if any(move in c for move in MOVES)] == []


@pytest.mark.parametrize("form", [moved, copied, skip_outside])
def test_open_sizes(form: Form) -> None:
    if form is copied:
        pytest.skip("its sizes are numbers")
    model, x = Net(form), torch.randn(2, 7, 4, dtype=torch.float64)
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
    made = normfuse.rewrite(torch.export.export(model, (x,), dynamic_shapes=sizes))
    assert made.report.after == {}
    other = torch.randn(3, 5, 4, dtype=torch.float64)
    assert distance(made.module()(other), model(other)) <= EXACT
