"""What is computed from weights alone is computed once, which is right where nobody else can tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import normfuse
from normfuse.freezing.settled import settled
from tests.patterns.capturing import program_of

drawn: list[int] = []


@torch.library.custom_op("freezing_tests::drawn", mutates_args=())
def draw(weight: torch.Tensor) -> torch.Tensor:
    drawn.append(1)
    return weight + len(drawn)


@draw.register_fake
def _(weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(weight)


class Returning(nn.Module):
    """Returns beside its answer what ``function`` makes of its parts, which is too large to be inlined."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        self.function = function

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.last(torch.relu(self.first(x))), self.function(self)


def checkpointed(model: Any) -> torch.Tensor:
    def run(bias: torch.Tensor) -> torch.Tensor:
        return bias.exp()

    found: torch.Tensor = torch.utils.checkpoint.checkpoint(run, model.first.bias, use_reentrant=False)
    return found


FUNCTIONS = {
    "function": lambda model: model.first.bias.exp(),
    "several": lambda model: model.first.weight @ model.last.weight,
    "view": lambda model: (model.first.bias + 1).view(4, 4).t(),
    "checkpointed": checkpointed,
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_what_is_returned_belongs_to_the_caller(name: str) -> None:
    model = Returning(FUNCTIONS[name]).eval()
    fast, x = torch.compile(model, backend="normfuse", options={"normfuse.freeze": "on"}), torch.randn(3, 16)
    with torch.no_grad():
        for _ in range(2):
            for found, wanted in zip(fast(x), model(x), strict=True):
                torch.testing.assert_close(found, wanted)
            fast(x)[1].zero_()
    assert normfuse.last_report(fast).frozen == (name != "several"), "the other weights are constants"


@pytest.mark.parametrize(
    "made",
    [
        lambda x, w: w.exp() * torch.ones(4),
        lambda x, w: w + x.new_zeros(4, 4),
        lambda x, w: w * torch.ones_like(x).sum(),
        lambda x, w: torch.cat([w, x[:0]]),
    ],
    ids=["ones", "zeros", "ones of another shape", "nothing"],
)
def test_what_makes_no_difference_is_not_looked_at(made: Any) -> None:
    """A compiler sees as much: what is returned would be the weight itself, or one constant at every call."""
    program = program_of(lambda x, w: (x @ w, made(x, w)), (torch.randn(3, 4), torch.randn(4, 4)), 1)
    weight = program.inputs[1].node
    found = settled(program.gm, [weight])
    assert found.outputs == [None, frozenset((weight,))]
    assert found.returned == {weight}


def test_what_is_made_at_every_call_is_no_constant() -> None:
    program = program_of(
        lambda x, w: (x @ w, torch.ones(4) * 2, x.new_zeros(3)), (torch.randn(3, 4), torch.randn(4, 4)), 0
    )
    assert settled(program.gm, []).outputs == [None] * 3


def test_only_weights() -> None:
    weight = nn.Parameter(torch.randn(16, 16))
    fast = torch.compile(lambda: weight @ weight, backend="normfuse")
    with torch.no_grad():
        fast().zero_()
        torch.testing.assert_close(fast(), weight @ weight)


def test_a_foreign_operator_is_called_every_time() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.first(x), draw(self.last.weight.t()))

    fast, x = torch.compile(Drawing().eval(), backend="normfuse"), torch.randn(3, 16)
    with torch.no_grad():
        one = fast(x)
        before = len(drawn)
        assert not torch.allclose(fast(x), one)
    assert len(drawn) == before + 1
    assert normfuse.last_report(fast).frozen == 1, "the other layer is"
