"""Folded stored norms keep what memory shows: strides of results, who shares storage, what is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import normfuse
from tests.passes.building import randomised


class Net(nn.Module):
    def __init__(self, run: Callable[..., Any], **held: nn.Module) -> None:
        super().__init__()
        for name, module in held.items():
            setattr(self, name, module)
        self.run = run

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


X = torch.randn(2, 6, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
CHANNELS_LAST: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, nn.Module]]]] = {
    "a grouped reader": (
        lambda s, x: s.c(s.n(x)),
        lambda: {"c": nn.Conv2d(6, 8, 3, groups=2), "n": nn.BatchNorm2d(6)},
    ),
    "a grouped transposed writer": (
        lambda s, x: s.n(s.c(x)),
        lambda: {"c": nn.ConvTranspose2d(6, 8, 3, groups=2), "n": nn.BatchNorm2d(8)},
    ),
    "a convolution beside": (
        lambda s, x: s.c(x) + s.n(x),
        lambda: {"c": nn.Conv2d(6, 6, 3, padding=1), "n": nn.BatchNorm2d(6)},
    ),
    "a small convolution beside": (
        lambda s, x: s.c(x) + s.n(x),
        lambda: {"c": nn.Conv2d(6, 6, 1), "n": nn.BatchNorm2d(6)},
    ),
}


@pytest.mark.parametrize("door", ["rewrite", "compile"])
@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_a_convolution_keeps_the_memory_format_that_its_weight_chooses(name: str, door: str) -> None:
    run, held = CHANNELS_LAST[name]
    model = randomised(Net(run, **held())).to(memory_format=torch.channels_last)
    with torch.no_grad():
        wanted = model(X)
        if door == "rewrite":
            made = normfuse.rewrite(model, (X,), verify="off")
            found, report = made.module()(X), made.report
        else:
            found = torch.compile(model, backend="normfuse", options={"normfuse.inner": "aot_eager"})(X)
            report = normfuse.last_report()
    assert [site.action for site in report.sites] == ["folded"]
    assert found.stride() == wanted.stride()


def _scaled(s: Any, h: torch.Tensor) -> torch.Tensor:
    """A norm in arithmetic, whose result lies as its input does."""
    made: torch.Tensor = h * torch.rsqrt(s.n.running_var + 1e-5).view(6, 1, 1)
    return made


#: Sums that lie as their first term does, which the convolution's result does not.
OTHERWISE: dict[str, Callable[..., Any]] = {
    "beside": lambda s, t: _scaled(s, t) + s.c(t),
    "beside, in a tree": lambda s, t: (_scaled(s, t) + torch.tanh(s.c(t))) + s.c(t),
    "of its own input": lambda s, t: _scaled(s, t + s.c(t)),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_sum_that_lies_in_another_way_than_its_weight_writes_keeps_its_norm(name: str) -> None:
    run = OTHERWISE[name]
    model = randomised(Net(lambda s, x: run(s, x.transpose(2, 3)), c=nn.Conv2d(6, 6, 1), n=nn.BatchNorm2d(6)))
    with torch.no_grad():
        model.n.running_var.abs_()
        made = normfuse.rewrite(model, (X,), verify="off")
        found, wanted = made.module()(X), model(X)
    assert [site.action for site in made.report.sites] == ["kept"]
    assert found.stride() == wanted.stride()
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_parts_of_one_convolution_that_are_returned_share_no_memory() -> None:
    """With one image the channels of a part lie together, so nothing else asks for a copy."""

    def run(s: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = s.c(x).chunk(2, 1)
        return s.n(a), s.m(b)

    model = randomised(Net(run, c=nn.Conv2d(6, 6, 2), n=nn.BatchNorm2d(3), m=nn.BatchNorm2d(3)))
    with torch.no_grad():
        made = normfuse.rewrite(model, (X[:1],), verify="off")
        a, b = made.module()(X[:1])
    assert {site.action for site in made.report.sites} == {"folded"}
    assert a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr()
    assert a.untyped_storage().nbytes() == a.nbytes


class Decays(nn.Module):
    """A buffer that each call changes writes the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.n = nn.Linear(8, 16), nn.LayerNorm(16)
        self.register_buffer("pos", torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.n(self.i(x) + self.pos)
        self.pos.mul_(0.5)
        return y


@pytest.mark.parametrize("functional", [False, True])
def test_buffers_that_a_program_updates_are_not_folded(functional: bool) -> None:
    model = randomised(Decays())
    x = torch.randn(4, 8, dtype=torch.float64)
    program = torch.export.export(copy.deepcopy(model), (x,))
    program = program.run_decompositions() if functional else program
    made = normfuse.rewrite(program).module()
    with torch.no_grad():
        for _ in range(3):
            wanted = model(x)
            assert float((made(x) - wanted).norm()) <= 1e-12 * float(wanted.norm())
