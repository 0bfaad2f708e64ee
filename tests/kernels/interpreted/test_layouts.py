"""Rows that are strided, moved, missing or shared, and results that nobody asked for."""

from __future__ import annotations

import pytest
import torch

from normfuse.kernels import crms_norm, layer_norm, rms_norm, row_scale

EPS = 1e-5


def exact(x, weight):
    return torch.nn.functional.rms_norm(x.double(), x.shape[-1:], weight.double(), EPS)


def near(found, wanted):
    """Some fifty roundings of float32, of numbers no larger than the largest."""
    assert found.shape == wanted.shape
    assert (found.double() - wanted).abs().max() <= 50 * 2**-24 * wanted.abs().max()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2],
        lambda x: x[:, 3:27],
        lambda x: x.t(),
        lambda x: x[0],
        lambda x: x.view(2, 4, 32),
        lambda x: x.view(2, 4, 32).transpose(0, 1),
        lambda x: x[:1].expand(5, 32),
        lambda x: x[:, 5:8],
    ],
)
def test_any_view_forward_and_backward(view):
    torch.manual_seed(0)
    x = torch.randn(8, 32, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    weight = torch.randn(view(x).shape[-1])
    y, wanted = rms_norm(view(x), weight, eps=EPS), exact(view(wide), weight)
    near(y.detach(), wanted.detach())
    arriving = torch.randn(y.shape)
    (dx,) = torch.autograd.grad(y, x, arriving)
    near(dx, *torch.autograd.grad(wanted, wide, arriving.double()))


def test_weights_with_gaps():
    x, weight = torch.randn(3, 16), torch.randn(16, 2)[:, 0]
    near(rms_norm(x, weight, eps=EPS), exact(x, weight))


@pytest.mark.parametrize("norm", [rms_norm, layer_norm, crms_norm])
def test_no_rows(norm):
    x = torch.randn(0, 3, 16, requires_grad=True)
    weight, bias = torch.randn(16, requires_grad=True), torch.randn(16, requires_grad=True)
    y, total, rstd = norm(x, weight, bias, residual=x, return_rstd=True)
    assert y.shape == total.shape == x.shape
    assert rstd.shape == (0, 3)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros(16))
    assert torch.equal(bias.grad, torch.zeros(16))


def test_a_row_of_zeros_is_zeros():
    for norm in (rms_norm, layer_norm, crms_norm):
        x = torch.zeros(2, 8, requires_grad=True)
        norm(x, eps=EPS).sum().backward()
        assert torch.equal(norm(x, eps=EPS), torch.zeros(2, 8))
        assert x.grad.isfinite().all()


def test_a_gradient_that_is_one_number_for_all():
    """``sum`` sends a tensor whose strides are zero."""
    x = torch.randn(4, 12, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    rms_norm(x, torch.ones(12), eps=EPS).sum().backward()
    exact(wide, torch.ones(12)).sum().backward()
    near(x.grad, wide.grad)


@pytest.mark.parametrize("used", ["y", "total", "rstd"])
def test_gradients_of_one_result(used):
    x, residual = (torch.randn(4, 12, requires_grad=True) for _ in range(2))
    weight = torch.randn(12, requires_grad=True)
    results = dict(
        zip(("y", "total", "rstd"), rms_norm(x, weight, None, EPS, residual, return_rstd=True), strict=True)
    )
    results[used].sum().backward()
    h = (x + residual).detach().double().requires_grad_()
    rstd = (h.square().mean(-1) + EPS).rsqrt()
    {"y": h * rstd[:, None] * weight.detach(), "total": h, "rstd": rstd}[used].sum().backward()
    near(x.grad, h.grad)
    assert torch.equal(x.grad, residual.grad)


def test_only_the_gradients_that_are_needed():
    x, weight = torch.randn(4, 12), torch.randn(12, requires_grad=True)
    rms_norm(x, weight, eps=EPS).sum().backward()
    wanted = (x.double() * (x.double().square().mean(-1, keepdim=True) + EPS).rsqrt()).sum(0)
    near(weight.grad, wanted)


def test_row_scale_is_the_factor_and_never_writes_the_value():
    x, residual = (torch.randn(3, 4, 20, requires_grad=True) for _ in range(2))
    total, rstd = row_scale(x, EPS, residual)
    wide = total.detach().double().requires_grad_()
    wanted = (wide.square().mean(-1) + EPS).rsqrt()
    near(rstd.detach(), wanted.detach())
    assert torch.equal(total, x + residual)
    near(torch.autograd.grad(rstd.sum(), x)[0], *torch.autograd.grad(wanted.sum(), wide))
    assert torch.equal(row_scale(total.detach(), EPS), rstd.detach())


def test_a_product_behind_the_row_scale_is_the_norm():
    x, matrix = torch.randn(5, 24), torch.randn(7, 24)
    deferred = (x @ matrix.t()) * row_scale(x, EPS)[:, None]
    wanted = exact(x, torch.ones(24)) @ matrix.double().t()
    assert (deferred - wanted).abs().max() <= (24 + 50) * 2**-24 * (x.abs() @ matrix.abs().t()).max()
