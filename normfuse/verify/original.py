"""The original and its float64 oracle on each set of inputs, run once however often it is rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from normfuse.errors import VerificationError, cause
from normfuse.verify.input_sets import InputSet
from normfuse.verify.oracle import run_wide
from normfuse.verify.probe import Probe
from normfuse.verify.reach import rounded_once
from normfuse.verify.widen import widen

__all__ = ["Known", "Original"]

#: What is kept from one rewrite to the next, in bytes; what does not fit is run again.
_MEMORY = 2**29


@dataclass(frozen=True)
class Known:
    """The values of one set of inputs: in the program's own dtypes and in float64."""

    reference: list[Tensor]
    oracle: list[Tensor]

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in (*self.reference, *self.oracle))


class Original:
    """``before`` returns the outputs and the value of every norm.

    Raises:
        VerificationError: when the program has no float64 oracle.
    """

    def __init__(self, before: Probe) -> None:
        self.before, self._wide = before, widen(before.graph)
        self._kept: dict[str, Known] = {}
        self._carried: dict[tuple[str, int], list[Tensor]] = {}

    def on(self, given: InputSet) -> Known:
        """Raises ``VerificationError`` when the original does not take the inputs."""
        if given.name in self._kept:
            return self._kept[given.name]
        known = self.run(given.values)
        if sum(one.nbytes for one in self._kept.values()) + known.nbytes <= _MEMORY:
            self._kept[given.name] = known
        return known

    def run(self, inputs: Sequence[Any]) -> Known:
        """The same without a memory."""
        try:
            reference = self.before.run(inputs)
        except Exception as error:
            raise VerificationError(f"the original does not take its inputs: {cause(error)}") from error
        return Known(reference, self._exact(inputs))

    def carried(self, given: InputSet, draw: int) -> list[Tensor]:
        """The oracle for inputs and weights that were rounded once more."""
        key = (given.name, draw)
        if key not in self._carried:
            self._carried = {k: v for k, v in self._carried.items() if k[0] == given.name}
            self._carried[key] = self._exact(rounded_once(given.values, draw))
        return self._carried[key]

    def _exact(self, inputs: Sequence[Any]) -> list[Tensor]:
        found = run_wide(self._wide, inputs)
        assert all(isinstance(value, Tensor) for value in found)
        return found  # type: ignore[return-value]
