"""A description of a norm, computed in float64 straight from its words; nothing is taken from its graph."""

from __future__ import annotations

import math

import torch

from normfuse.ir.region import NormRegion
from normfuse.ir.spec import NormSpec

__all__ = ["describes", "evaluate"]


def evaluate(spec: NormSpec, operands: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a norm with this description returns for these operands, in float64."""
    x = operands["source"].double()
    eps = float(operands["eps"]) if spec.eps is None else spec.eps
    shape = x.shape
    if spec.groups > 1 and spec.kind == "group_norm":
        x = x.reshape(shape[0], spec.groups, -1)
        dims: tuple[int, ...] = (-1,)
    elif spec.groups > 1:
        x, dims = x.unflatten(-1, (spec.groups, -1)), (-1,)
    else:
        dims = spec.dims
    if spec.kind not in ("rms_norm", "l2_norm", "crms_norm"):
        x = x - x.mean(dims, keepdim=True)
    count = math.prod(x.shape[d] for d in dims)
    squares = (x * x).sum(dims, keepdim=True)
    if spec.basis == "drop_last":
        squares, count = squares + x.sum(dims, keepdim=True) ** 2, count + 1
    mean_square = squares / (spec.divisor or count)
    root = {
        "inside": lambda: (mean_square + eps).sqrt(),
        "outside": lambda: mean_square.sqrt() + eps,
        "clamp": lambda: mean_square.sqrt().clamp_min(eps),
    }[spec.eps_mode]()
    if spec.returns == "factor":
        return spec.post_factor / root
    y = (x / root).reshape(shape)
    if "scale" in operands:
        y = y * _placed(operands["scale"].double(), spec, y)
    if "shift" in operands:
        y = y + _placed(operands["shift"].double(), spec, y)
    return y * spec.post_factor


def _placed(operand: torch.Tensor, spec: NormSpec, y: torch.Tensor) -> torch.Tensor:
    """Of norms over positions, weight and bias run along dimension 1."""
    if spec.kind in ("group_norm", "instance_norm"):
        return operand.reshape(-1, *[1] * (y.dim() - 2))
    return operand


def describes(region: NormRegion, fakes: list[torch.Tensor | float]) -> bool:
    """Whether the body of a region computes what its description says, on random operands.

    The tolerance is that of a float32 result with a sum of thousands of terms, or of three roundings
    to half precision.
    """
    spec, generator = region.spec, torch.Generator().manual_seed(0)
    values = [_random(f, generator) if isinstance(f, torch.Tensor) else f for f in fakes]
    roles = ["source"]
    roles += ["eps"] if spec.eps is None else []
    roles += ["scale"] if spec.has_scale else []
    roles += ["shift"] if spec.has_shift else []
    operands = {r: torch.as_tensor(v) for r, v in zip(roles, values, strict=False)}
    if spec.eps is None:
        operands["eps"] = torch.tensor(1e-3)
        values[1] = torch.tensor(1e-3) if isinstance(values[1], torch.Tensor) else 1e-3
    with torch.no_grad():
        found, wanted = region(*values).double(), evaluate(spec, operands)
    exact = spec.out_dtype in (torch.float32, torch.float64) and spec.scale_dtype != torch.bfloat16
    tolerance = 1e-4 if exact else 0.05
    return found.shape == wanted.shape and bool((found - wanted).norm() <= tolerance * wanted.norm() + 1e-30)


def _random(fake: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """With a mean, so that a forgotten one shows."""
    shape = [int(s) for s in fake.shape]
    return (torch.randn(shape, generator=generator) + 0.5).to(fake.dtype)
