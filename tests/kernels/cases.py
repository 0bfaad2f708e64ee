"""A call of a norm of ``normfuse.kernels`` with all its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32

import torch

__all__ = ["NAMES", "Call", "Case", "call"]

NAMES = ("x", "weight", "bias", "residual", "gate")


@dataclass(frozen=True)
class Case:
    """What is normalized, and what takes part."""

    norm: str
    rows: int
    width: int
    dtype: torch.dtype = torch.float32
    parts: tuple[str, ...] = ("weight", "bias", "residual")
    groups: int = 1
    gate_first: bool = False
    weight_offset: float = 0.0
    weight_dtype: torch.dtype = torch.float32
    mean: float = 0.0
    eps: float = 1e-5
    device: str = "cpu"

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        gate = ("-gate_first" if self.gate_first else "-gate") if "gate" in self.parts else ""
        return f"{self.norm}-{self.rows}x{self.groups}x{self.width}-{kind}{gate}-{self.mean:g}"


@dataclass
class Call:
    """Inputs, results and gradients, each by name."""

    case: Case
    tensors: dict[str, torch.Tensor]
    arriving: dict[str, torch.Tensor]
    results: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)


def call(case: Case) -> Call:
    """Run it forward and backward, with a gradient for each result."""
    from normfuse import kernels

    generator = torch.Generator().manual_seed(crc32(str(case).encode()))
    features = case.width * case.groups

    def tensor(*shape: int, dtype: torch.dtype, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) + mean).to(dtype).to(case.device)

    tensors = {"x": tensor(case.rows, features, dtype=case.dtype, mean=case.mean)}
    for name in case.parts:
        shape, dtype = ((features,), case.weight_dtype)
        if name in ("residual", "gate"):
            shape, dtype = ((case.rows, features), case.dtype)
        tensors[name] = tensor(*shape, dtype=dtype)
    leaves = {name: value.requires_grad_() for name, value in tensors.items()}
    given = kernels.__dict__[case.norm](
        *(leaves.get(name) for name in ("x", "weight", "bias")),
        case.eps,
        leaves.get("residual"),
        gate=leaves.get("gate"),
        gate_first=case.gate_first,
        weight_offset=case.weight_offset,
        groups=case.groups,
        return_rstd=True,
    )
    names = ("y", "total", "rstd") if "residual" in case.parts else ("y", "rstd")
    results = dict(zip(names, given, strict=True))
    arriving = {name: tensor(*value.shape, dtype=value.dtype) for name, value in results.items()}
    found = torch.autograd.grad(list(results.values()), list(leaves.values()), list(arriving.values()))
    done = Call(case, {n: v.detach() for n, v in tensors.items()}, arriving)
    done.results = {n: v.detach() for n, v in results.items()}
    done.gradients = dict(zip(leaves, found, strict=True))
    return done
