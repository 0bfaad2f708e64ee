"""How far one rounding of a function's inputs and weights carries its value.

    reach = max over draws of |f(x (1 + d), w (1 + d')) - f(x, w)|,    d, d' = +-eps/2 with random signs

in float64, with the eps of the dtype in which inputs and weights are stored. A stored number stands for every
number that is rounded to it, so an error of this size is one that no program on the same numbers is free of:
the original's error may by chance be smaller, on the inputs at hand, and a rewrite that rounds a weight once
may not be. (In the words of numerical analysis: mixed forward-backward stability, Higham 2002, section 1.5.)

Where the reach is more than half of the digits, rounding decides what the function is there, as it does
behind a saturated softmax or a threshold. That is no excuse on ordinary inputs; on hostile ones, which the
original itself hardly survives, it says that nothing can be judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normfuse.verify.compare import comparable, distance, max_abs_error
from normfuse.verify.dtypes import is_real_number

__all__ = ["NO_REACH", "Reach", "keeps_half_its_digits", "rounded_once"]


@dataclass(frozen=True)
class Reach:
    """For one value: the distance in L2 (``norm``) and of the furthest number (``peak``).

    ``decided`` marks the integers and booleans that rounding decides. ``reason`` says why nothing can be
    judged, if so.
    """

    norm: float = 0.0
    peak: float = 0.0
    decided: Tensor | None = None
    reason: str = ""

    @classmethod
    def of(cls, reference: Tensor, oracle: Tensor, moved: Sequence[Tensor], hostile: bool = False) -> Reach:
        """From the oracle of the function and those of the function of rounded inputs and weights."""
        moved = [m for m in moved if m.shape == oracle.shape]
        if not moved:
            return NO_REACH
        if not is_real_number(reference.dtype):
            apart = reference != oracle.to(reference.device)
            for one in moved:
                apart = apart | (one != oracle).to(reference.device)
            return cls(decided=apart)
        measured = [_distances(reference, oracle, one) for one in moved]
        norm, peak = max(norm for norm, _, _ in measured), max(peak for _, peak, _ in measured)
        if all(keeps_half_its_digits(reference, oracle, one) for one in moved):
            return cls(norm, peak)
        size = measured[0][2]
        share = norm / size if size else math.inf
        return (
            cls(reason=f"one rounding of inputs and weights changes it by {share:.2g}") if hostile else cls()
        )


def keeps_half_its_digits(reference: Tensor, oracle: Tensor, moved: Tensor) -> bool:
    """Whether a function of rounded inputs is the same but for small errors; integers are the same.

    Otherwise rounding decided something, as it does where a mask is compared with a number.
    """
    if moved.shape != oracle.shape:
        return False
    if not is_real_number(reference.dtype):
        return torch.equal(moved, oracle)
    norm, _, size = _distances(reference, oracle, moved)
    return norm <= math.sqrt(torch.finfo(reference.dtype).eps) * size


def _distances(reference: Tensor, oracle: Tensor, moved: Tensor) -> tuple[float, float, float]:
    """In L2, of the furthest number, and the size of the oracle in L2."""
    _, m, o = comparable(reference, moved, oracle)
    size = distance(o, torch.zeros_like(o))
    if not bool(torch.isfinite(m).all()):
        return math.inf, math.inf, size
    return distance(m, o), max_abs_error(m, o), size


NO_REACH = Reach()
"""Of a value of which it is not known."""


def rounded_once(values: Sequence[Any], draw: int) -> list[Any]:
    """Floating tensors in float64, every number moved by half a unit in its last place.

    Other values stay. Equal draws move numbers alike; an object that occurs twice is moved once.
    """
    moved: dict[int, Any] = {}
    for position, value in enumerate(values):
        if id(value) not in moved:
            moved[id(value)] = _moved(value, 7919 * draw + position)
    return [moved[id(value)] for value in values]


def _moved(value: Any, seed: int) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    generator = torch.Generator().manual_seed(seed)
    up = torch.randint(0, 2, tuple(value.shape), generator=generator, dtype=torch.int8).to(value.device)
    step = torch.finfo(value.dtype).eps / 2
    return value.detach().double() * (1.0 + step * (1.0 - 2.0 * up.double()))
