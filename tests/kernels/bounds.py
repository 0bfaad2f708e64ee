"""How far float32 arithmetic may be from float64, derived from what the kernels compute.

K counts roundings on the longest way: a tree over the lanes (log2 of the width, twice over), the values that
a thread adds up one after the other, and some forty for what is done to each value, among them the few units
in the last place of ``exp`` and ``rsqrt``. Each quantity below is a sum of the magnitudes that roundings are
relative to; ``2 ** -24 * K`` times it bounds the error. A result is then rounded once to its dtype.
"""

from __future__ import annotations

from math import ceil, log2

import torch
from torch.nn import functional as F

from normfuse.kernels.plan import forward_plans
from tests.kernels.cases import Call
from tests.kernels.oracle import exact

__all__ = ["check", "magnitudes", "unit"]


def unit(dtype: torch.dtype, truncates: bool) -> float:
    """The largest relative error of rounding; Triton's interpreter cuts bfloat16 off and does not round."""
    rounded = torch.finfo(dtype).eps / 2
    return 2 * rounded if truncates and dtype == torch.bfloat16 else rounded


def check(call: Call, truncates: bool) -> dict[str, float]:
    """Fail where a result is further off than its bound; the largest ratio of error to bound by name."""
    wanted, allowed = exact(call), magnitudes(call)
    found = {**call.results, **{f"d{name}": value for name, value in call.gradients.items()}}
    ratios = {}
    for name, value in found.items():
        assert value.isfinite().all(), f"{call.case}: {name} is not finite"
        limit = unit(value.dtype, truncates) * wanted[name].abs() + 2.0**-24 * allowed[name]
        limit = limit + torch.finfo(value.dtype).smallest_normal
        ratios[name] = float(((value.double() - wanted[name]).abs() / limit).max())
        assert ratios[name] <= 1, f"{call.case}: {name} is {ratios[name]:.3g} times its bound away"
    return ratios


def magnitudes(call: Call) -> dict[str, torch.Tensor]:
    """By name, K times what the roundings of float32 are relative to."""
    case, t = call.case, {name: value.double() for name, value in call.tensors.items()}
    ones, zeros = torch.ones_like(t["x"]), torch.zeros_like(t["x"])
    h = call.results.get("total", call.tensors["x"]).double()
    gate = t.get("gate", zeros)
    opening, slope = (F.silu(gate), torch.sigmoid(gate) * (1 + gate.abs())) if "gate" in t else (ones, zeros)
    first, after = (opening, ones) if case.gate_first else (ones, opening)
    scale = (t["weight"] + case.weight_offset).expand_as(h) if "weight" in t else ones
    shift = t["bias"].expand_as(h) if "bias" in t else zeros
    row = _Rows(h * first, call)
    n, g = row.flat(row.normal), call.arriving["y"].double() * after
    du = row.flat(row.gradient(row.split(g * scale)))
    k = row.roundings
    many = k + case.rows
    return {
        "y": k * after.abs() * ((scale * n).abs() + shift.abs()),
        "total": zeros,
        "rstd": (k * row.rstd * (1 + row.lost)).view(call.results["rstd"].shape),
        "dx": k * (first.abs() * du + call.arriving.get("total", zeros).double().abs()),
        "dresidual": k * (first.abs() * du + call.arriving.get("total", zeros).double().abs()),
        "dweight": many * (g.abs() * n).sum(0),
        "dbias": many * g.abs().sum(0),
        "dgate": k * slope * (h.abs() * du if case.gate_first else _opened(call, scale, shift, n)),
    }


def _opened(call: Call, scale: torch.Tensor, shift: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    return call.arriving["y"].double().abs() * ((scale * n).abs() + shift.abs())


class _Rows:
    """The rows that share statistics, and what is lost where large numbers cancel in them."""

    def __init__(self, u: torch.Tensor, call: Call) -> None:
        self.call, self.case = call, call.case
        u = self.split(u)
        self.rstd = call.results["rstd"].double().view(*u.shape[:-1], 1)
        self.sum, total = u.sum(-1, keepdim=True), u.abs().sum(-1, keepdim=True)
        self.total = total
        level = self.rstd * 0
        count = u.shape[-1]
        centred = u
        if self.case.norm == "layer_norm":  # u - mean is as exact as u is
            centred, level = u - u.mean(-1, keepdim=True), self.rstd * u.abs().amax(-1, keepdim=True)
        self.lost = level
        if self.case.norm == "crms_norm":  # the square of a sum whose terms cancel
            count += 1
            self.lost = self.sum.abs() * total * self.rstd.square() / count
        self.count = count
        self.normal = (centred * self.rstd).abs() * (1 + self.lost) + level

    @property
    def roundings(self) -> float:
        width = self.case.width
        blocks = max(ceil(width / plan.block) for plan in forward_plans(width))
        return (40 + 2 * ceil(log2(width + 1)) + blocks) * (blocks if self.case.norm == "layer_norm" else 1)

    def split(self, value: torch.Tensor) -> torch.Tensor:
        return value.unflatten(-1, (self.case.groups, -1))

    def flat(self, value: torch.Tensor) -> torch.Tensor:
        return value.flatten(-2)

    def gradient(self, g: torch.Tensor) -> torch.Tensor:
        """``rstd * (|g| + |n| (|c1| + its error) + |c2| + its error)``, see ``kernels.code.gradients``."""
        g, n = g.abs(), self.normal
        drstd = self.call.arriving["rstd"].double().view(self.rstd.shape).abs()
        along = ((g * n).sum(-1, keepdim=True) + drstd * self.rstd * (1 + self.lost)) / self.count
        level = self.rstd * 0
        if self.case.norm == "layer_norm":
            level = g.mean(-1, keepdim=True)
        elif self.case.norm == "crms_norm":
            level = along * self.rstd * self.total
        return self.rstd * (1 + self.lost) * (g + 2 * n * along + 2 * level)
