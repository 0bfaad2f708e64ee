"""A call of a norm in float64, by PyTorch's own functions, from the sum h as it was rounded."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.kernels.cases import Call, Case

__all__ = ["exact"]


def exact(call: Call) -> dict[str, torch.Tensor]:
    """Results by name, gradients with a ``d`` before it."""
    case, t = call.case, {name: value.double().requires_grad_() for name, value in call.tensors.items()}
    h = call.results.get("total", call.tensors["x"]).double().requires_grad_()
    y, rstd = _forward(h, t, case)
    leaves = {**t, "x": h, **({"residual": h} if "residual" in t else {})}
    arriving = [call.arriving["y"].double(), call.arriving["rstd"].double().view(rstd.shape)]
    found = torch.autograd.grad([y, rstd], list(leaves.values()), arriving)
    gradients = {f"d{name}": value for name, value in zip(leaves, found, strict=True)}
    if "total" in call.results:
        gradients["dx"] = gradients["dresidual"] = gradients["dx"] + call.arriving["total"].double()
    total = t["x"] + t["residual"] if "residual" in t else t["x"]
    results = {"y": y, "total": total, "rstd": rstd.view(call.results["rstd"].shape)}
    return {**{name: value.detach() for name, value in results.items()}, **gradients}


def _forward(h: torch.Tensor, t: dict[str, torch.Tensor], case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    opening = F.silu(t["gate"]) if "gate" in t else torch.ones((), dtype=torch.float64, device=h.device)
    parts = (h * opening if case.gate_first else h).unflatten(-1, (case.groups, -1))
    n, rstd = _norm(parts, case)
    y = n.flatten(-2)
    if "weight" in t:
        y = y * (t["weight"] + case.weight_offset)
    if "bias" in t:
        y = y + t["bias"]
    return y if case.gate_first else y * opening, rstd


def _norm(u: torch.Tensor, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    if case.norm == "layer_norm":
        rstd = (u.var(-1, correction=0) + case.eps).rsqrt()
        return F.layer_norm(u, u.shape[-1:], eps=case.eps), rstd
    whole = u if case.norm == "rms_norm" else torch.cat([u, -u.sum(-1, keepdim=True)], -1)
    rstd = (whole.square().mean(-1) + case.eps).rsqrt()
    return F.rms_norm(whole, whole.shape[-1:], eps=case.eps)[..., : u.shape[-1]], rstd
