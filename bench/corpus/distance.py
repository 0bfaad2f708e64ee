"""How far two results of a model are apart, and how far rounding alone may bring them.

For results ``y`` (the model) and ``z`` (what stands beside it), with ``e(v)`` the relative L2 distance
of ``v`` to the model in exact arithmetic, ``|z - y| / |y| <= e(z) + e(y)``. A rewrite may have 1.5 times
the error of the model (see docs/verification.md), so the tolerance is ``2.5 e(y)``, plus one rounding of
the result. ``e(y)`` is measured twice, and the larger counts: against the model in float64, and as the
answer to one unit in the last place of every weight: folding rounds weights, too, and this reaches models
that cast to float32 inside.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from bench.corpus.running import tensors_of

__all__ = ["Judgement", "judgement", "relative"]

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Judgement:
    """The worst tensor of a result: its distance, what is allowed, and what is wrong apart from that."""

    distance: float
    tolerance: float
    cause: str = ""

    @property
    def is_near(self) -> bool:
        return self.distance <= self.tolerance

    @property
    def excess(self) -> float:
        """Distance over tolerance."""
        if self.tolerance:
            return self.distance / self.tolerance
        return math.inf if self.distance else 0.0


def judgement(model: torch.nn.Module, inputs: dict[str, Any], wanted: Tensors, got: Tensors) -> Judgement:
    """Compare ``got`` with ``wanted``, tensor by tensor; the worst one is returned."""
    if [(t.shape, t.dtype) for t in wanted] != [(t.shape, t.dtype) for t in got]:
        return Judgement(math.inf, 0.0, "shapes or types differ")
    errors = [_errors(model, inputs, wanted, make) for make in (_widened, _rounded)]
    found = []
    for place, (y, z) in enumerate(zip(wanted, got, strict=True)):
        tolerance = 2.5 * max(e[place] for e in errors) + _eps(y)
        cause = f"tensor {place} of {len(wanted)} {list(y.shape)}"
        found.append(Judgement(relative(y, z), tolerance, cause))
    return max(found, key=lambda judged: judged.excess)


def _eps(y: torch.Tensor) -> float:
    return torch.finfo(y.dtype).eps if y.is_floating_point() or y.is_complex() else 0.0


def relative(y: torch.Tensor, z: torch.Tensor) -> float:
    """``|z - y| / |y|``; infinite where one is not finite and the other is, or is so in another way."""
    if not torch.equal(y.isfinite(), z.isfinite()):
        return math.inf
    kind = torch.complex128 if y.is_complex() else torch.float64
    y, z = (t.to(kind).nan_to_num(0.0, 0.0, 0.0) for t in (y, z))
    size, difference = float(y.norm()), float((z - y).norm())
    return difference / size if size else (math.inf if difference else 0.0)


Variant = Callable[[torch.nn.Module, dict[str, Any]], tuple[torch.nn.Module, dict[str, Any]]]


def _errors(model: torch.nn.Module, inputs: dict[str, Any], wanted: Tensors, make: Variant) -> list[float]:
    """The distance of each tensor to that of a variant of the model; zeros where the variant does not run."""
    try:
        other = tensors_of(*make(copy.deepcopy(model), inputs))
    except Exception:
        return [0.0] * len(wanted)
    if [t.shape for t in other] != [t.shape for t in wanted]:
        return [0.0] * len(wanted)
    found = [relative(y, z) for y, z in zip(wanted, other, strict=True)]
    return [e if math.isfinite(e) else 0.0 for e in found]


def _widened(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.nn.Module, dict[str, Any]]:
    def widen(value: Any) -> Any:
        is_real = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.double() if is_real else value

    return model.double(), tree_map(widen, inputs)


def _rounded(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.nn.Module, dict[str, Any]]:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                eps = torch.finfo(weight.dtype).eps
                weight.mul_(1 + eps * torch.randint_like(weight, -1, 2))
    return model, inputs
