"""The same model without its norms: what the norm tax is measured against."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from normfuse.backends.without_norms import WithoutNorms
from normfuse.options import Options
from tests.backends.networks import example, prenorm

PLAIN = Options(inner="eager")


class HandWritten(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width).double())

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def stripped(model):
    """The model with an identity in the place of each norm."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.LayerNorm, nn.BatchNorm2d, HandWritten)):
                setattr(module, name, nn.Identity())
    return model


def handwritten():
    model = prenorm()
    model.blocks[0].norm = HandWritten()
    return model, example()


def convolutional():
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norms[0], nn.ReLU(), nn.Conv2d(4, 4, 3), norms[1])
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64).to(memory_format=torch.channels_last)
    return model.double().eval(), images


@pytest.mark.parametrize(
    ("make", "deleted"),
    [(lambda: (prenorm(), example()), 3), (handwritten, 3), (convolutional, 2)],
    ids=["layer_norm", "handwritten", "batch_norm"],
)
def test_every_norm_is_taken_out(make, deleted):
    model, x = make()
    backend = WithoutNorms(PLAIN)
    with torch.no_grad():
        found = torch.compile(model, backend=backend)(x)
        expected = stripped(model)(x)
        assert not torch.equal(expected, model(x))
    assert backend.deleted == deleted
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_stripped_model():
    model, x = prenorm(), example()
    other = stripped(model)
    torch.compile(model, backend=WithoutNorms(PLAIN))(x).square().sum().backward()
    other(x).square().sum().backward()
    expected = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-10, atol=1e-10)


def test_a_model_without_norms_stays_as_it_is():
    backend = WithoutNorms(PLAIN)
    with torch.no_grad():
        assert torch.equal(torch.compile(nn.ReLU(), backend=backend)(example()), example().relu())
    assert backend.deleted == 0
