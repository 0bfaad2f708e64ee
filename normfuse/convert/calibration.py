"""What ``normfuse.calibrate`` found, for the user to accept or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from normfuse.convert.plan import Entry
from normfuse.convert.swap import Swap

__all__ = ["Calibration"]


@dataclass(frozen=True)
class Calibration:
    """An approximate model, beside the one that was given, which is unchanged until :meth:`accept`.

    Attributes:
        to: the layer that norms become.
        batches, tokens: how much data there was; tokens are those of the layer that saw the most.
        output_change: ``|y' - y| / |y|``, over all entries of all outputs on the data, where ``y`` is what
            the given model computes; infinite where only one of the two is finite.
        largest_change: the largest ``|y' - y|``.
        metric_before, metric_after: what ``metric`` said of the given model and of the approximate one, in
            evaluation; None without it.
        converted, kept: one entry for each norm.
        notes: what a person should know, for example channels that never vary.
    """

    to: str
    batches: int
    tokens: int
    output_change: float
    largest_change: float
    metric_before: float | None
    metric_after: float | None
    converted: tuple[Entry, ...]
    kept: tuple[Entry, ...]
    notes: tuple[str, ...]
    _model: nn.Module
    _swap: Swap

    @property
    def is_accepted(self) -> bool:
        return self._swap.is_installed

    def accept(self) -> nn.Module:
        """Put the calibrated layers into the model that was given, and return it.

        Raises:
            InputError: where the model has other modules in their places by now.
        """
        self._swap.install()
        return self._model

    def revert(self) -> nn.Module:
        """Put the norms back that were there before, and return the model.

        Raises:
            InputError: where the model has other modules in their places by now.
        """
        self._swap.remove()
        return self._model

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with the calibrated layers, for as long as the block runs."""
        with self._swap.installed():
            yield self._model

    def __str__(self) -> str:
        lines = [
            f"approximate: {_counted(len(self.converted), 'norm')} as {self.to}, statistics from "
            f"{_counted(self.tokens, 'token')} in {_counted(self.batches, 'batch', 'batches')}",
            f"outputs change by {self.output_change:.2%} of their size, by {self.largest_change:.3g} at most",
        ]
        if self.metric_before is not None and self.metric_after is not None:
            lines.append(f"metric: {self.metric_before:.6g} before, {self.metric_after:.6g} after")
        lines += [f"kept: {entry}" for entry in self.kept] + [f"note: {note}" for note in self.notes]
        state = "accepted" if self.is_accepted else "the model is unchanged; accept() changes it"
        return "\n".join([*lines, state])


def _counted(count: int, one: str, several: str | None = None) -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
