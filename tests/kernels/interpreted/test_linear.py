"""The product behind an RMSNorm against float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from normfuse.kernels import linear_rms_norm
from tests.kernels.bounds import unit

EPS = 1e-5
SHAPES = [(1, 5, 3), (3, 40, 33), (20, 100, 70), (40, 140, 20)]


def wide(*values):
    return [value.detach().double().requires_grad_() for value in values]


def compare(found, wanted, terms, length):
    """``length`` products of magnitudes that add up to ``terms``, then one rounding to the dtype."""
    limit = unit(found.dtype, True) * wanted.abs() + (length + 60) * 2.0**-24 * terms
    assert ((found.double() - wanted).abs() <= limit + torch.finfo(found.dtype).smallest_normal).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_forward(rows, inputs, outputs, dtype):
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    exact_x, exact_weight, exact_bias = wide(x, weight, bias)
    rstd = (exact_x.square().mean(-1, keepdim=True) + EPS).rsqrt()
    wanted = F.linear(exact_x, exact_weight) * rstd + exact_bias
    terms = F.linear(exact_x.abs(), exact_weight.abs()) * rstd + exact_bias.abs()
    compare(linear_rms_norm(x, weight, bias, EPS), wanted, terms, inputs)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_gradients(rows, inputs, outputs):
    """In float32, where the products of the gradients are no less exact than PyTorch's own."""
    torch.manual_seed(rows)
    leaves = [torch.randn(s, requires_grad=True) for s in ((rows, inputs), (outputs, inputs), (outputs,))]
    x, weight, bias = wide(*leaves)
    rstd = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
    arriving = torch.randn(rows, outputs)
    wanted = torch.autograd.grad(F.linear(x * rstd, weight, bias), (x, weight, bias), arriving.double())
    found = torch.autograd.grad(linear_rms_norm(*leaves, EPS), leaves, arriving)
    n, g = (x * rstd).abs(), arriving.double().abs()
    back = g @ weight.abs()
    terms = (rstd * (back + n * (n * back).mean(-1, keepdim=True)), g.t() @ n, g.sum(0))
    for one, exact, magnitude, length in zip(
        found, wanted, terms, (outputs + inputs, rows, rows), strict=True
    ):
        compare(one, exact, magnitude, length)


def test_leading_dimensions_and_strided_rows():
    x, weight = torch.randn(2, 3, 60)[..., 10:42], torch.randn(5, 64)[:, ::2]
    y = linear_rms_norm(x, weight, eps=EPS)
    wanted = F.linear(F.rms_norm(x.double(), (32,), eps=EPS), weight.double())
    assert y.shape == (2, 3, 5)
    assert (y - wanted).abs().max() <= 100 * 2**-24 * 32


def test_no_rows_and_no_outputs():
    assert linear_rms_norm(torch.randn(0, 8), torch.randn(4, 8)).shape == (0, 4)
    x = torch.randn(3, 8, requires_grad=True)
    y = linear_rms_norm(x, torch.randn(0, 8))
    assert y.shape == (3, 0)
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros(3, 8))


def test_a_gradient_does_not_divide_by_the_outputs():
    """A row whose products are all zero has gradients like any other."""
    x = torch.tensor([[1.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[1.0, -1.0]], requires_grad=True)
    linear_rms_norm(x, weight, eps=EPS).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([[1.0, -1.0]]), atol=1e-4)
