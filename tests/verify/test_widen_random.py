"""Random numbers of the oracle are the model's own, drawn in the model's dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from normfuse.errors import VerificationError
from normfuse.verify import run_wide, widen


def wide(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    gm = make_fx(f, pre_dispatch=True)(x.clone())
    torch.manual_seed(7)
    (output,) = run_wide(widen(gm), [x])
    assert isinstance(output, Tensor)
    return output


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rand": lambda x: torch.rand(32),
    "rand_like": lambda x: torch.rand_like(x),
    "randn": lambda x: torch.randn(32, dtype=torch.bfloat16),
    "normal_": lambda x: torch.empty(32).normal_(),
    "uniform_ on the input": lambda x: x.uniform_(-1, 1),
    "bernoulli_": lambda x: x.new_empty(32).bernoulli_(0.3),
    "randint": lambda x: torch.randint(0, 100, (32,)),
    "randperm": lambda x: torch.randperm(32),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_are_the_models(draw: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(32)
    found = wide(draw, x)
    torch.manual_seed(7)
    expected = draw(x.clone())
    assert found.dtype == (torch.float64 if expected.is_floating_point() else expected.dtype)
    assert torch.equal(found, expected.to(found.dtype))


@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dropout", [F.dropout, F.dropout1d], ids=["element", "feature"])
def test_dropout_keeps_the_models_elements(dropout: Callable[..., Tensor], inplace: bool, p: float) -> None:
    x = torch.linspace(1, 2, 256).view(4, 8, 8)
    found = wide(lambda t: dropout(t * 1, p, True, inplace), x)
    torch.manual_seed(7)
    kept = dropout(x.clone(), p, True) != 0
    assert 0 < kept.sum() < 256 or p == 1.0
    expected = x.double() * kept / (1 - p) if p < 1 else torch.zeros_like(x).double()
    # Multiplying by 1/(1-p) instead of dividing: two roundings.
    assert torch.allclose(found, expected, rtol=2 * torch.finfo(torch.float64).eps, atol=0)


def test_inactive_randomness_is_accepted() -> None:
    def f(x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, training=False) + F.dropout(x, 0.0, training=True)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.0)

    x = torch.linspace(-1, 1, 32).view(1, 4, 8)
    y = 2 * x.double()
    assert torch.allclose(wide(f, x), F.scaled_dot_product_attention(y, y, y), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: torch.bernoulli(x),
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
        lambda x: torch.multinomial(x, 2),
    ],
    ids=["bernoulli", "attention dropout", "multinomial"],
)
def test_draws_that_depend_on_a_floating_input_are_refused(draw: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(VerificationError, match="draws random numbers that differ between dtypes"):
        wide(draw, torch.full((4, 8), 0.5))
