"""Bodies of norms of d - 1 coordinates of zero-mean values, against the RMSNorm of all d in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx import Graph

from normfuse.errors import InvariantError
from normfuse.ir.canonical import canonical_region, is_expressible
from normfuse.ir.region import NormRegion, Operands
from normfuse.ir.spec import NormSpec

pytestmark = pytest.mark.rounding

BASES = ("drop_last", "orthonormal")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-2


def rms_norm(source: torch.dtype, compute: torch.dtype, **changes: object) -> NormSpec:
    given = {"dims": (-1,), "eps": EPS, "scale_dtype": compute, "out_dtype": source} | changes
    return NormSpec("rms_norm", source_dtype=source, compute_dtype=compute, **given)  # type: ignore[arg-type]


def region(spec: NormSpec, **operands: torch.Tensor | None) -> NormRegion:
    graph, held = Graph(), {r: v for r, v in operands.items() if v is not None}
    with FakeTensorMode() as mode:
        fakes = {r: mode.from_tensor(v) for r, v in held.items()}
        nodes = {r: graph.placeholder(r) for r in held}
        for role, node in nodes.items():
            node.meta["val"] = fakes[role]
        return canonical_region(spec, Operands(**nodes), fakes["source"])


def zero_mean(*shape: int, axis: int) -> torch.Tensor:
    """Rows without a mean, of a size at which eps matters, in float64."""
    drawn = 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn - drawn.mean(axis, keepdim=True)


def basis_of(d: int) -> torch.Tensor:
    """The Householder reflection that takes ones to the last axis, without its last column."""
    v = torch.full((d,), d**-0.5, dtype=torch.float64)
    v[-1] -= 1
    return (torch.eye(d, dtype=torch.float64) - 2 * torch.outer(v, v) / v.dot(v))[:, :-1]


def stored(whole: torch.Tensor, basis: str, axis: int) -> torch.Tensor:
    """What is kept of zero-mean values along an axis."""
    last = whole.movedim(axis, -1)
    kept = last[..., :-1] if basis == "drop_last" else last @ basis_of(last.shape[-1])
    return kept.movedim(-1, axis)


def of_all(z: torch.Tensor, basis: str, axis: int, eps: float, divisor: int | None = None) -> torch.Tensor:
    """The values over the root mean square of the vector that they stand for."""
    z = z.double()
    squares = (z**2).sum(axis, keepdim=True)
    if basis == "drop_last":
        squares = squares + z.sum(axis, keepdim=True) ** 2
    count = z.shape[axis] + (basis == "drop_last")
    return z / (squares / (divisor or count) + eps).sqrt()


@pytest.mark.parametrize("d", [2, 3, 8, 65])
def test_the_norm_of_what_is_stored_is_that_of_all(d: int) -> None:
    """Both bases, in float64: the equations that the bodies rest on."""
    whole = zero_mean(7, d, axis=-1)
    wanted = whole / (whole.square().mean(-1, keepdim=True) + EPS).sqrt()
    dropped = of_all(stored(whole, "drop_last", -1), "drop_last", -1, EPS)
    torch.testing.assert_close(dropped, wanted[:, :-1], rtol=1e-12, atol=1e-12)
    rotated = of_all(whole @ basis_of(d), "orthonormal", -1, EPS * d / (d - 1))
    gain = (d / (d - 1)) ** 0.5
    torch.testing.assert_close(gain * rotated, wanted @ basis_of(d), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gain * rotated @ basis_of(d).T, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [-1, -2, -3])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("basis", BASES)
def test_the_body(basis: str, dtype: torch.dtype, contiguous: bool, axis: int) -> None:
    """Half precision is rounded once, after a norm of float32, whose sums have six terms at most."""
    z = stored(zero_mean(4, 5, 6, axis=axis), basis, axis).to(dtype)
    z = z.contiguous() if contiguous else z.transpose(0, 2).contiguous().transpose(0, 2)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    found = region(rms_norm(dtype, compute, dims=(axis,)).in_basis(basis), source=z)(z)
    assert (found.shape, found.dtype, found.stride()) == (z.shape, dtype, z.stride())
    wanted = of_all(z, basis, axis, EPS)
    unit = torch.finfo(dtype).eps if dtype.itemsize == 2 else 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), wanted, rtol=unit, atol=0)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("eps_is_operand", [False, True])
def test_weight_bias_and_eps(basis: str, eps_is_operand: bool) -> None:
    z = stored(zero_mean(4, 9, axis=-1), basis, -1).float()
    scale, shift, eps = torch.randn(8), torch.randn(8), torch.tensor(EPS)
    spec = rms_norm(
        torch.float32, torch.float32, has_scale=True, has_shift=True, eps=None if eps_is_operand else EPS
    )
    given = {"eps": eps} if eps_is_operand else {}
    made = region(spec.in_basis(basis), source=z, **given, scale=scale, shift=shift)
    found = made(z, *given.values(), scale, shift)
    wanted = of_all(z, basis, -1, float(eps) if eps_is_operand else EPS) * scale + shift
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


def test_half_sums_do_not_overflow() -> None:
    """Squares of 300 exceed what float16 holds; a norm in half precision makes its sums in float32."""
    z = 300 * stored(zero_mean(3, 65, axis=-1), "drop_last", -1).sign().half()
    found = region(rms_norm(torch.float16, torch.float16).in_basis("drop_last"), source=z)(z)
    wanted = of_all(z, "drop_last", -1, EPS)
    torch.testing.assert_close(found.double(), wanted, rtol=torch.finfo(torch.float16).eps, atol=0)


def test_the_scale_is_multiplied_where_the_original_rounds() -> None:
    """``weight * norm(x.float()).to(x.dtype)``: the product is one of half precision."""
    z = stored(zero_mean(4, 9, axis=-1), "drop_last", -1).bfloat16()
    scale = torch.randn(8).bfloat16()
    spec = rms_norm(torch.bfloat16, torch.float32, scale_dtype=torch.bfloat16, has_scale=True)
    bare = region(rms_norm(torch.bfloat16, torch.float32).in_basis("drop_last"), source=z)(z)
    found = region(spec.in_basis("drop_last"), source=z, scale=scale)(z, scale)
    assert torch.equal(found, bare * scale)


def test_a_divisor_of_its_own() -> None:
    z = stored(zero_mean(4, 9, axis=-1), "drop_last", -1)
    spec = rms_norm(torch.float64, torch.float64, divisor=5).in_basis("drop_last")
    torch.testing.assert_close(region(spec, source=z)(z), of_all(z, "drop_last", -1, EPS, divisor=5))


@pytest.mark.parametrize("basis", BASES)
def test_gradients(basis: str) -> None:
    z = stored(zero_mean(4, 9, axis=-1), basis, -1).requires_grad_()
    made = region(rms_norm(torch.float64, torch.float64).in_basis(basis), source=z.detach())
    (found,) = torch.autograd.grad(made(z).pow(3).sum(), z)
    (wanted,) = torch.autograd.grad(of_all(z, basis, -1, EPS).pow(3).sum(), z)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "spec",
    [
        rms_norm(torch.float32, torch.float32).in_basis("other"),
        rms_norm(torch.float32, torch.float32, dims=(-2, -1)).in_basis("drop_last"),
        rms_norm(torch.float32, torch.float32, eps_mode="clamp").in_basis("drop_last"),
        rms_norm(torch.float32, torch.float32, groups=2).in_basis("orthonormal"),
        rms_norm(torch.float32, torch.float32, divisor=5).in_basis("orthonormal"),
        rms_norm(torch.float32, torch.float32, divisor=5, groups=2),
        rms_norm(torch.float32, torch.float32, eps_mode="outside", factor_dtype=torch.bfloat16),
        rms_norm(torch.float32, torch.float32, eps_mode="outside", returns="factor"),
    ],
)
def test_what_has_no_body(spec: NormSpec) -> None:
    assert not is_expressible(spec)
    with pytest.raises(InvariantError, match="no canonical body"):
        region(spec, source=torch.randn(4, 8))


def over(x: torch.Tensor, mode: str, divisor: int, centred: bool) -> torch.Tensor:
    """The values over the root of their mean square, with eps where the mode says."""
    x = x - x.mean(-1, keepdim=True) if centred else x
    square = x.square().sum(-1, keepdim=True) / divisor
    if mode == "inside":
        return x / (square + EPS).sqrt()
    return x / (square.sqrt().clamp_min(EPS) if mode == "clamp" else square.sqrt() + EPS)


@pytest.mark.parametrize("divisor", [None, 1, 7])
@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm", "l2_norm"])
@pytest.mark.parametrize("mode", ["inside", "outside", "clamp"])
def test_every_eps_has_a_body(mode: str, kind: str, divisor: int | None) -> None:
    """Rows of very different sizes, so that a bound is met by some of them."""
    x = zero_mean(4, 8, axis=0) * torch.tensor([[1.0], [0.1], [1e-2], [0.0]], dtype=torch.float64)
    spec = replace(rms_norm(x.dtype, x.dtype, eps_mode=mode, divisor=divisor), kind=kind)
    found = region(spec, source=x)(x)
    wanted = over(x, mode, divisor or 8, kind == "layer_norm")
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-300)


def test_groups_have_a_body() -> None:
    x, w, b = zero_mean(4, 6, 5, axis=0), zero_mean(6, axis=0), zero_mean(6, axis=0)
    spec = rms_norm(x.dtype, x.dtype, dims=(-2, -1), groups=3, affine_dims=(-2,), post_factor=-2.0)
    spec = replace(spec, kind="group_norm", has_scale=True, has_shift=True)
    found = region(spec, source=x, scale=w, shift=b)(x, w, b)
    torch.testing.assert_close(found, -2 * torch.nn.functional.group_norm(x, 3, w, b, EPS), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_one_operator_has_weight_and_bias_where_it_rounds_as_they_do(kind: str, dtype: torch.dtype) -> None:
    x, w, b = (zero_mean(*shape, axis=-1).to(dtype) for shape in ((4, 8), (8,), (8,)))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    spec = replace(rms_norm(dtype, compute, has_scale=True, has_shift=kind == "layer_norm"), kind=kind)
    body = region(spec, source=x, scale=w, shift=b if spec.has_shift else None).body
    assert [n.target for n in body.nodes if n.op == "call_function"] == [
        getattr(torch.ops.aten, kind).default
    ]
    bare = region(replace(spec, has_scale=False, has_shift=False), source=x).body
    assert len([n for n in bare.nodes if n.op == "call_function"]) == 1
    other = region(replace(spec, scale_dtype=torch.bfloat16), source=x, scale=w).body
    assert len([n for n in other.nodes if n.op == "call_function"]) > 1


def test_another_kind_forgets_the_basis() -> None:
    spec = rms_norm(torch.float32, torch.float32)
    assert spec.in_basis("drop_last").as_kind("rms_norm") == spec
    assert not spec.in_basis("drop_last").centred
