"""Whether a dtype holds a folded weight that is seen in blocks; :func:`normfuse.folding.precision.fits`."""

from __future__ import annotations

import math

import torch

from normfuse.errors import InputError

__all__ = ["Fit"]


class Fit:
    """Sums over the rows and columns of a weight of this shape for float16; finite entries for others."""

    def __init__(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self._name, self._dtype = name, dtype
        sides = range(len(shape))[:2] if len(shape) > 1 else ()
        self._sides = {
            side: torch.zeros(2, shape[side], dtype=torch.float64) for side in sides if dtype == torch.float16
        }
        self._total = torch.zeros(2, dtype=torch.float64)

    def add(self, wide: torch.Tensor, narrow: torch.Tensor, axis: int, start: int) -> None:
        """One block, before and after it was rounded.

        Raises:
            InputError: when an entry is not finite.
        """
        is_finite = math.isfinite(float(torch.linalg.vector_norm(narrow)))  # faster, and may overflow
        if not is_finite and not bool(torch.isfinite(narrow).all()):
            raise self._error("would not be finite")
        if self._dtype != torch.float16:
            return
        wide = wide.double()
        squares = torch.stack([(narrow.double() - wide) ** 2, wide**2])
        self._total += squares.flatten(1).sum(1)
        for side, sums in self._sides.items():
            others = [d + 1 for d in range(wide.dim()) if d != side]
            first = start if side == axis else 0
            sums[:, first : first + wide.shape[side]] += squares.sum(others)

    def check(self) -> None:
        """All blocks are there.

        Raises:
            InputError: when rows or columns lost their precision, since their entries are no normal numbers.
        """
        if self._dtype == torch.float16:
            roundoff = torch.finfo(torch.float16).eps / 2
            for error, size in (self._total, *self._sides.values()):
                if not bool((error <= roundoff**2 * size).all()):
                    raise self._error("would be too small to be precise")

    def _error(self, what: str) -> InputError:
        dtype = str(self._dtype).removeprefix("torch.")
        return InputError(
            f"{self._name} {what} in {dtype} with the norm's weight in it; leave that out "
            "(--skip fold_scale), or save the model in a wider dtype"
        )
