"""Where norms stand: the equations with a norm and a sublayer of their own."""

from __future__ import annotations

import pytest
import torch

from normfuse.errors import OptionError
from normfuse.nn import DepthScaledNorm, PeriNorm, PostNorm, PreNorm, mix_norm
from tests.nn.training import NEAR, distance


def norm():
    return torch.nn.LayerNorm(6)


class Sublayer(torch.nn.Module):
    """It has an argument of its own."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 6)

    def forward(self, x, factor=1.0):
        return factor * self.linear(x).tanh()


def filled(module):
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    return module.double()


PLACES = {
    "pre": (PreNorm, lambda m, x, f: x + f(m.norm(x))),
    "post": (PostNorm, lambda m, x, f: m.norm(x + f(x))),
    "peri": (PeriNorm, lambda m, x, f: x + m.output_norm(f(m.norm(x)))),
    "depth": (lambda n, s: DepthScaledNorm(n, s, 4), lambda m, x, f: x + f(m.norm(x) / 2)),
}


@pytest.mark.parametrize("name", sorted(PLACES))
def test_equation(name):
    make, equation = PLACES[name]
    module = filled(make(norm, Sublayer()))
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    expected = equation(module, x, lambda v: 2.0 * module.sublayer.linear(v).tanh())
    assert distance(module(x, factor=2.0), expected) <= NEAR
    assert distance(module(x, 2.0), expected) <= NEAR


def test_a_peri_norms_two_norms_are_two():
    module = PeriNorm(norm, Sublayer())
    assert module.norm is not module.output_norm


@pytest.mark.parametrize(
    ("alpha", "layers", "post"), [(0.25, 8, 2), (0.25, 7, 1), (0.29, 100, 29), (0.0, 4, 0), (1.0, 4, 4)]
)
def test_mix(alpha, layers, post):
    made = [mix_norm(norm, Sublayer(), k, layers, alpha) for k in range(1, layers + 1)]
    assert [type(m) for m in made] == [PostNorm] * post + [PreNorm] * (layers - post)


def test_errors():
    with pytest.raises(OptionError, match="there is no 5"):
        mix_norm(norm, Sublayer(), 5, 4)
    with pytest.raises(OptionError, match="alpha is a number from 0 to 1"):
        mix_norm(norm, Sublayer(), 1, 4, 1.5)
    with pytest.raises(OptionError, match="layer is a whole number of at least 1, not 0"):
        DepthScaledNorm(norm, Sublayer(), 0)
    with pytest.raises(OptionError, match="takes a function that makes a norm, and this one made a NoneType"):
        PreNorm(lambda: None, Sublayer())
