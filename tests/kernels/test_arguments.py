"""What does not fit together is said in one sentence, and CPU tensors take the reference."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from normfuse.errors import InputError
from normfuse.kernels import crms_norm, layer_norm, linear_rms_norm, rms_norm, row_scale

X, W = torch.randn(4, 6), torch.randn(6)
ELSEWHERE = torch.empty(6, device="meta")
NORMS = (rms_norm, layer_norm, crms_norm)

BAD = [
    ({"x": X.double()}, "has no kernel for float64; use float32, bfloat16 or float16"),
    ({"x": X.long()}, "has no kernel for int64"),
    ({"x": torch.tensor(1.0)}, "x has no dimensions"),
    ({"x": torch.empty(3, 0)}, "the last dimension must not be empty"),
    ({"x": [1.0]}, "x is a list; pass a tensor"),
    ({"x": torch.empty(1, 65537)}, "65537 values share statistics; the kernels go up to 65536"),
    ({"weight": torch.ones(5)}, r"weight has the shape \(5,\); it must be \(6,\)"),
    ({"weight": torch.ones(4, 6)}, r"weight has the shape \(4, 6\); it must be \(6,\)"),
    ({"bias": torch.ones(7)}, r"bias has the shape \(7,\)"),
    ({"weight": W.double()}, "weight is float64; use float32"),
    ({"weight": ELSEWHERE}, "weight is on meta, x on cpu; move one of them"),
    ({"bias": ELSEWHERE}, "bias is on meta"),
    ({"residual": X[:1]}, r"residual has the shape \(1, 6\), x \(4, 6\); they must be equal"),
    ({"residual": X.bfloat16()}, "residual is bfloat16, x float32; convert one of them"),
    ({"gate": X.t()}, "gate has the shape"),
    ({"gate": X.double()}, "gate is float64"),
    ({"groups": 4}, "6 features cannot be split into 4 groups of equal width"),
    ({"groups": 0}, "6 features cannot be split into 0 groups"),
    ({"eps": 0.0}, "eps is 0.0; it must be a positive number that float32 can hold"),
    ({"eps": -1e-5}, "eps is -1e-05"),
    ({"eps": float("nan")}, "eps is nan"),
    ({"eps": 1e-60}, "eps is 1e-60"),
    (
        {"weight_offset": 1.0},
        "weight_offset is 1.0 and there is no weight; pass one or leave weight_offset out",
    ),
    ({"gate_first": True}, "gate_first is True and there is no gate"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[m[:30] for _, m in BAD])
@pytest.mark.parametrize("norm", NORMS)
def test_bad_input(norm, changed, message):
    with pytest.raises(InputError, match=message) as raised:
        norm(**{"x": X, **changed})
    assert isinstance(raised.value, ValueError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (X, torch.ones(3, 5)),
            r"weight has the shape \(3, 5\); for rows of 6 values it must be \(outputs, 6\)",
        ),
        ((X, torch.ones(6)), r"it must be \(outputs, 6\)"),
        ((X, torch.ones(3, 6).half()), "convert or move one of them"),
        ((X, torch.empty(3, 6, device="meta")), "convert or move one of them"),
        ((X, torch.ones(3, 6), torch.ones(4)), r"bias has the shape \(4,\); it must be \(3,\)"),
        ((X, torch.ones(3, 6), None, 0.0), "eps is 0.0"),
        ((X, torch.ones(3, 6), None, 1e-5, X[:2]), r"residual has the shape \(2, 6\), x \(4, 6\)"),
        ((X, torch.ones(3, 6), None, 1e-5, X.half()), "residual is float16, x float32; convert one of them"),
        ((X, torch.ones(3, 6), None, 1e-5, X.to("meta")), "residual is on meta, x on cpu; move one of them"),
        ((X.double(), torch.ones(3, 6)), "no kernel for float64"),
        ((X, torch.ones(3, 6), None, X), "eps is a Tensor; it must be a positive number"),
        ((X, torch.ones(3, 6), None, None), "eps is a NoneType"),
        ((X, None), "weight is a NoneType; pass a tensor"),
        ((X, torch.ones(3, 6), 1.0), "bias is a float; pass a tensor"),
        ((X, torch.ones(3, 6), None, 1e-5, [X]), "residual is a list; pass a tensor"),
    ],
)
def test_bad_input_of_the_product(arguments, message):
    with pytest.raises(InputError, match=message):
        linear_rms_norm(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_reference_is_what_pytorch_computes(dtype):
    """Up to one rounding of the result, since both compute in float32."""
    x, weight = X.to(dtype), W.to(dtype)
    step = torch.finfo(dtype).eps
    for found, wanted in (
        (rms_norm(x, weight, eps=1e-5), F.rms_norm(x.float(), (6,), weight.float(), 1e-5)),
        (layer_norm(x, weight, weight), F.layer_norm(x.float(), (6,), weight.float(), weight.float())),
        (
            rms_norm(x, weight, eps=1e-5, weight_offset=1.0),
            F.rms_norm(x.float(), (6,), weight.float() + 1, 1e-5),
        ),
    ):
        assert found.dtype == dtype
        assert torch.allclose(found.float(), wanted, rtol=step, atol=16 * 2**-24)


def test_a_crms_norm_is_the_rms_norm_of_one_coordinate_more():
    whole = torch.randn(5, 7)
    whole -= whole.mean(-1, keepdim=True)
    wanted = F.rms_norm(whole, (7,), eps=1e-5)[..., :-1]
    assert torch.allclose(crms_norm(whole[..., :-1], eps=1e-5), wanted, atol=40 * 2**-24)


def test_groups_and_gates_of_the_reference():
    gate = torch.randn(4, 6)
    parts = [F.rms_norm(part, (3,), eps=1e-5) for part in X.chunk(2, -1)]
    wanted = torch.cat(parts, -1) * F.silu(gate)
    assert torch.allclose(rms_norm(X, eps=1e-5, groups=2, gate=gate), wanted, atol=40 * 2**-24)
    first = F.rms_norm(X * F.silu(gate), (6,), eps=1e-5)
    assert torch.allclose(rms_norm(X, eps=1e-5, gate=gate, gate_first=True), first, atol=40 * 2**-24)


def test_results_come_in_one_order():
    y, total, rstd = rms_norm(X, residual=X, return_rstd=True)
    assert torch.equal(total, X + X)
    assert torch.equal(row_scale(X + X), rstd)
    assert torch.equal(rms_norm(X, residual=X)[0], y)
    assert rms_norm(X, return_rstd=True, groups=2)[1].shape == (4, 2)
    assert torch.equal(row_scale(X, residual=X)[0], total)
    y, total = linear_rms_norm(X, torch.ones(3, 6), residual=X)
    assert torch.equal(total, X + X)
    assert torch.equal(y, linear_rms_norm(X + X, torch.ones(3, 6)))


def test_gradients_of_the_reference_are_the_ones_of_pytorch():
    x, weight = X.clone().requires_grad_(), torch.randn(3, 6, requires_grad=True)
    found = torch.autograd.grad(linear_rms_norm(x, weight, eps=1e-5).sum(), (x, weight))
    wanted = torch.autograd.grad(F.linear(F.rms_norm(x, (6,), eps=1e-5), weight).sum(), (x, weight))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=100 * 2**-24)


def test_autocast_changes_nothing():
    weight = torch.randn(3, 6, requires_grad=True)
    x = X.clone().requires_grad_()
    plain = linear_rms_norm(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_rms_norm(x, weight), plain)


def test_transforms_and_derivatives_forward():
    weight, tangent = torch.randn(3, 6), torch.randn(4, 6)
    wanted = torch.func.jvp(lambda x: F.linear(F.rms_norm(x, (6,), eps=1e-6), weight), (X,), (tangent,))[1]
    found = torch.func.jvp(lambda x: linear_rms_norm(x, weight), (X,), (tangent,))[1]
    assert torch.allclose(found, wanted, atol=100 * 2**-24)
    assert torch.equal(torch.vmap(rms_norm)(X[None]), rms_norm(X)[None])
