"""Autocast around an export, which no program holds, and around a rewrite of a program without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normfuse
from tests.backends.networks import example, prenorm


class Inside(nn.Module):
    """A model that asks for autocast itself."""

    def __init__(self) -> None:
        super().__init__()
        self.model = prenorm().float().eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found: torch.Tensor = self.model(x)
            return found


@pytest.mark.parametrize("target", ["rms_norm", "crms_norm"])
def test_exported_under_autocast(target: str) -> None:
    model, x = prenorm().float().eval(), example().float()
    with torch.autocast("cpu", torch.bfloat16):
        program = torch.export.export(model, (x,))
        with pytest.raises(normfuse.InputError, match=r"export or rewrite the model outside of autocast"):
            normfuse.rewrite(model, (x,), target=target, verify="off")
    with pytest.raises(normfuse.InputError, match=r"exported under torch\.autocast"):
        normfuse.rewrite(program, target=target, verify="off")


def test_rewritten_under_autocast() -> None:
    """The program has no casts, and neither has the one that is made of it."""
    model, x = prenorm().float().eval(), example().float()
    program = torch.export.export(model, (x,))
    outside = normfuse.rewrite(program, verify="off").module()
    with torch.autocast("cpu", torch.bfloat16):
        under = normfuse.rewrite(program, verify="off").module()
    assert torch.equal(under(x), outside(x))


def test_autocast_inside_of_the_model() -> None:
    x = example().float()
    model = Inside().eval()
    made = normfuse.rewrite(model, (x,), verify="off")
    torch.testing.assert_close(made.module()(x), model(x))
