"""What a program does besides returning values is what the original does, and what it holds is its own."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

import normfuse
from tests.backends.networks import example, prenorm


class Counts(nn.Module):
    """Counts its calls, checks its input, adds a constant of its own, and returns a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        torch._assert_async((x < 10).all())
        y: Any = self.inner.norm(self.inner.embed(x) + torch.tensor([1.0, 2.0] * 8, dtype=x.dtype))
        return y


def refuses(module: Any) -> bool:
    with suppress(RuntimeError):
        module(example() + 1000)
        return False
    return True


@pytest.mark.parametrize("functional", [False, True])
def test_side_effects(functional: bool) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        program = torch.export.export(Counts().eval(), (example(),))
        program = program.run_decompositions({}) if functional else program
        made = normfuse.rewrite(program)
        module = made.program.module()
        wanted = program.module()(example())
        held = program.state_dict["calls"].clone()
        found = module(example())
        assert torch.equal(program.state_dict["calls"], held)
        assert refuses(module) == refuses(program.module()) == (not functional)  # PyTorch drops it there
    assert made.report.after == {"rms_norm": 1}
    assert float((found - wanted).norm()) <= 1e-11 * float(wanted.norm())
    names = [[spec.arg.name for spec in p.graph_signature.output_specs] for p in (program, made.program)]
    assert names[0] == names[1]
    assert made.weight_map.changed


class Chooses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm(dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.inner(x)
        return y, y.argmax(-1), y > 0


def test_choices_that_overflow_and_ties_decide_are_no_reason_to_undo_a_rewrite() -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        made = normfuse.rewrite(Chooses().eval(), (example(dtype=torch.float32),))
        assert made.report.after == {"rms_norm": 3}


class Flat(nn.Module):
    """A counter lies in one storage with the weight of a norm and with a name that no input has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm(dtype=torch.float32)
        flat = torch.ones(17)
        self.inner.norm.weight.data = flat[:16]
        self.register_buffer("calls", flat[16:])
        self.register_buffer("all", flat)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        y: Any = self.inner(x) + self.calls
        return y


def test_a_counter_in_the_memory_of_a_weight_is_its_own_as_well() -> None:
    model, x = Flat().eval(), example(dtype=torch.float32)
    made = normfuse.rewrite(model, (x,))
    assert made.report.after == {"rms_norm": 3}
    module = made.module()
    with torch.no_grad():
        first, second = module(x), module(x)
    assert float(model.calls) == 1.0
    torch.testing.assert_close(second, first + 1)
    state = made.program.state_dict
    assert float(state["calls"]) == float(state["all"][16]) == 3.0
    assert isinstance(state["inner.norm.weight"], nn.Parameter)


class Mixed(torch.nn.Module):
    """A weight of one dtype meets a buffer of another, which an exporter does not mind and a kernel does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)
        self.register_buffer("table", torch.ones(2, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.norm(self.linear(self.table))


def test_weights_that_the_program_itself_cannot_compute_are_named() -> None:
    model = Mixed().double().eval()
    model.table = model.table.float()
    program = torch.export.export(model, (torch.randn(4, 2, 8, dtype=torch.float64),))
    with pytest.raises(normfuse.InputError, match=r"the linear layer in linear .* does not run: .*dtype"):
        normfuse.rewrite(program, verify="off")
