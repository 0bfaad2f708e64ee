"""Modes around an export: autocast, which no program holds, and inference mode, which its values show."""

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


def test_exported_in_inference_mode() -> None:
    """Rewritten and verified where gradients may be recorded, though nothing asks for any."""
    model, x = prenorm().eval(), example()
    with torch.inference_mode():
        program = torch.export.export(model, (x,))
    made = normfuse.rewrite(program, target="crms_norm", verify="sites")
    assert {site.action for site in made.report.sites} == {"converted"}
    torch.testing.assert_close(made.module()(x), model(x))
