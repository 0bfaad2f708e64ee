"""The product behind an RMSNorm against float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from normfuse.kernels import linear_rms_norm, rms_norm
from tests.kernels.bounds import unit

EPS = 1e-5
SHAPES = [(1, 5, 3), (3, 40, 33), (20, 100, 70), (40, 140, 20)]


def wide(*values):
    return [value.detach().double().requires_grad_() for value in values]


def compare(found, wanted, terms, length):
    """``length`` products of magnitudes that add up to ``terms``, then one rounding to the dtype."""
    limit = unit(found.dtype, True) * wanted.abs() + (length + 60) * 2.0**-24 * terms
    assert ((found.double() - wanted).abs() <= limit + torch.finfo(found.dtype).smallest_normal).all()


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_forward(rows, inputs, outputs, dtype, adds):
    torch.manual_seed(rows)
    sizes = ((rows, inputs), (outputs, inputs), (outputs,), (rows, inputs))
    x, weight, bias, residual = (torch.randn(size).to(dtype) for size in sizes)
    h = x
    if adds:
        y, h = linear_rms_norm(x, weight, bias, EPS, residual)
        exact = x.double() + residual.double()
        assert ((h.double() - exact).abs() <= unit(dtype, True) * exact.abs()).all()
    else:
        y = linear_rms_norm(x, weight, bias, EPS)
    exact_h, exact_weight, exact_bias = wide(h, weight, bias)
    rstd = (exact_h.square().mean(-1, keepdim=True) + EPS).rsqrt()
    wanted = F.linear(exact_h, exact_weight) * rstd + exact_bias
    terms = F.linear(exact_h.abs(), exact_weight.abs()) * rstd + exact_bias.abs()
    compare(y, wanted, terms, inputs)


@pytest.mark.parametrize("reads", ["value", "sum", "both"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_gradients(rows, inputs, outputs, reads):
    """In float32, where the products of the gradients are no less exact than PyTorch's own."""
    torch.manual_seed(rows)
    sizes = ((rows, inputs), (outputs, inputs), (outputs,), (rows, inputs))
    leaves = [torch.randn(size, requires_grad=True) for size in sizes]
    x, weight, bias, residual = wide(*leaves)
    h = x + residual
    rstd = (h.square().mean(-1, keepdim=True) + EPS).rsqrt()
    arriving = [torch.randn(rows, outputs), torch.randn(rows, inputs)]
    arriving = [one * (reads in (name, "both")) for one, name in zip(arriving, ("value", "sum"), strict=True)]
    results = F.linear(h * rstd, weight, bias), h
    given = [one.double() for one in arriving]
    wanted = torch.autograd.grad(results, (x, weight, bias, residual), given)
    found = torch.autograd.grad(linear_rms_norm(*leaves[:3], EPS, leaves[3]), leaves, arriving)
    n, g = (h * rstd).abs(), given[0].abs()
    back = g @ weight.abs()
    dh = rstd * (back + n * (n * back).mean(-1, keepdim=True)) + given[1].abs()
    lengths = (outputs + inputs, rows, rows, outputs + inputs)
    for one, exact, magnitude, length in zip(
        found, wanted, (dh, g.t() @ n, g.sum(0), dh), lengths, strict=True
    ):
        compare(one, exact, magnitude, length)


def test_gradients_of_what_nothing_reads():
    """Only the sum is read, or the product alone: the other arrives as nothing at all."""
    x, residual, weight = (torch.randn(s, requires_grad=True) for s in ((3, 8), (3, 8), (4, 8)))
    y, h = linear_rms_norm(x, weight, eps=EPS, residual=residual)
    assert all(torch.equal(one, torch.ones(3, 8)) for one in torch.autograd.grad(h.sum(), (x, residual)))
    y, h = linear_rms_norm(x, weight, eps=EPS, residual=residual)
    one, other = torch.autograd.grad(y.sum(), (x, residual))
    (wanted,) = torch.autograd.grad(linear_rms_norm(x + residual, weight, eps=EPS).sum(), x)
    assert torch.equal(one, wanted)
    assert torch.equal(other, wanted)


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
    for rows, outputs in ((0, 4), (3, 0)):
        x, residual = torch.randn(rows, 8), torch.randn(rows, 8)
        y, h = linear_rms_norm(x, torch.randn(outputs, 8), residual=residual)
        assert y.shape == (rows, outputs)
        assert torch.equal(h, x + residual)


def test_a_gradient_does_not_divide_by_the_outputs():
    """A row whose products are all zero has gradients like any other."""
    x = torch.tensor([[1.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[1.0, -1.0]], requires_grad=True)
    linear_rms_norm(x, weight, eps=EPS).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([[1.0, -1.0]]), atol=1e-4)


@pytest.mark.parametrize(("x_scale", "dy_scale"), [(1e-3, 200.0), (1e3, 1e-4), (3e3, 1e-3)])
def test_gradients_of_the_weight_in_float16(x_scale, dy_scale):
    """Neither ``dy * rstd`` nor ``x`` may have to fit, only the normalized values."""
    torch.manual_seed(0)
    x, weight = (torch.randn(8, 16) * x_scale).half(), torch.randn(4, 16).half().requires_grad_()
    arriving = (torch.randn(8, 4) * dy_scale).half()
    (found,) = torch.autograd.grad(linear_rms_norm(x, weight, eps=1e-12), weight, arriving)
    n = F.rms_norm(x.double(), (16,), eps=1e-12)
    wanted, terms = arriving.double().t() @ n, arriving.double().abs().t() @ n.abs()
    limit = (
        2.0**-11 * (wanted.abs() + terms) + 20 * 2.0**-24 * terms + torch.finfo(torch.float16).smallest_normal
    )
    assert ((found.double() - wanted).abs() <= limit).all()


def test_the_setting_for_tf32_is_read_whichever_way_it_was_made():
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        for dtype in (torch.float32, torch.float16):
            x, weight = torch.randn(2, 8).to(dtype), torch.randn(3, 8).to(dtype)
            wanted = F.linear(F.rms_norm(x.double(), (8,), eps=1e-6), weight.double())
            # TF32 has the ten digits of float16.
            assert float((linear_rms_norm(x, weight) - wanted).abs().max()) <= 8 * 2**-10 * 8
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


def test_results_may_be_written_to():
    """As those of PyTorch's own norm and product; gradients need the sum as it is, as they do there."""
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(4, 8)
    linear_rms_norm(x, weight).relu_().sum().backward()
    wide = x.detach().double().requires_grad_()
    F.linear(F.rms_norm(wide, (8,), eps=1e-6), weight.double()).relu().sum().backward()
    assert torch.allclose(x.grad.double(), wide.grad, atol=200 * 2**-24)
    rms_norm(x, residual=x)[1].add_(1.0)
    linear_rms_norm(x, weight, residual=x)[1].add_(1.0)
    rms_norm(x).mul_(2.0)


def test_transforms_take_the_reference():
    x, weight, tangent = torch.randn(3, 8), torch.randn(4, 8), torch.randn(3, 8)
    wanted = torch.func.jvp(lambda x: F.linear(F.rms_norm(x, (8,), eps=EPS), weight), (x,), (tangent,))[1]
    found = torch.func.jvp(lambda x: linear_rms_norm(x, weight, eps=EPS), (x,), (tangent,))[1]
    assert torch.allclose(found, wanted, atol=100 * 2**-24)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        y = linear_rms_norm(dual, weight, eps=EPS)
        assert torch.allclose(torch.autograd.forward_ad.unpack_dual(y).tangent, wanted, atol=100 * 2**-24)
    gradient = torch.func.grad(lambda x: linear_rms_norm(x, weight, eps=EPS).sum())(x)
    leaf = x.clone().requires_grad_()
    F.linear(F.rms_norm(leaf, (8,), eps=EPS), weight).sum().backward()
    assert torch.allclose(gradient, leaf.grad, atol=200 * 2**-24)
