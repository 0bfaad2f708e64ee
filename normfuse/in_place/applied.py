"""What was written into a model, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from normfuse.errors import InputError
from normfuse.in_place.additions import watch_additions
from normfuse.in_place.held import Held
from normfuse.in_place.parts import Parts
from normfuse.in_place.propose import Change
from normfuse.report import Report
from normfuse.report_table import headline

__all__ = ["Applied", "write"]


@dataclass
class Written:
    """One tensor of the model that was written to; ``original`` is what it held before, if that is kept."""

    name: str
    tensor: torch.Tensor
    original: torch.Tensor | None
    version: int = -1

    def put(self, value: torch.Tensor) -> None:
        """Write, so that the version counter tells of it."""
        with torch.inference_mode(False), torch.no_grad():
            self.tensor.copy_(value)
        self.version = self.tensor._version


@dataclass(repr=False)
class Applied:
    """What :func:`normfuse.apply` did to a model. It prints as its report.

    Attributes:
        report: what was found, and what became of it; ``becomes`` says of a norm what it may run as.
        written: the names of the tensors that hold something else now, and how that was computed of what the
            model held before.
        left: the names of those that stay though a rule would change them, with the reasons.
        parts: the modules that compute something else now, by name.
    """

    report: Report
    written: Mapping[str, str]
    left: Mapping[str, str]
    parts: Parts
    _model: torch.nn.Module
    _tensors: list[Written] = field(default_factory=list)
    _is_undone: bool = False

    def __str__(self) -> str:
        tensors = "1 tensor holds" if len(self.written) == 1 else f"{len(self.written)} tensors hold"
        left = [f"{name} stays as it is: {reason}" for name, reason in self.left.items()]
        return "\n".join([str(self.report), f"{tensors} folded values now", *self.parts.lines(), *left])

    def __repr__(self) -> str:
        return f"<Applied: {headline(self.report).removeprefix('normfuse: ')}>"

    def undo(self) -> None:
        """Give the model back what it held, to the bit.

        Raises:
            InputError: when the originals were not kept, when that was done already, and when a tensor was
                written to since; the model is as it was then.
        """
        if self._is_undone:
            raise InputError("this was undone already")
        for one in self._tensors:
            if one.original is None:
                raise InputError(
                    "the original weights were not kept; load them anew, or call normfuse.apply with "
                    "keep_originals=True next time"
                )
            seen = (one.tensor._version, one.tensor.shape, one.tensor.dtype)
            if seen != (one.version, one.original.shape, one.original.dtype):
                raise InputError(f"{one.name} was changed after normfuse.apply, and undoing would lose that")
        _write_all(self._tensors)
        self.parts.take_back()
        watch_additions(self._model, None)
        self._is_undone = True
        for one in self._tensors:
            one.original = None


def write(change: Change, held: Held, keep_originals: bool) -> list[Written]:
    """Write a change, all of it or nothing."""
    done = [Written(held.names[place], held.tensors[place], new.value) for place, new in change.items()]
    _write_all(done)
    if not keep_originals:
        for one in done:
            one.original = None
    return done


def _write_all(tensors: Sequence[Written]) -> None:
    """Exchange what each tensor holds and its ``original``; when one fails, change the others back."""
    done: list[tuple[Written, torch.Tensor, torch.Tensor]] = []
    try:
        for one in tensors:
            assert one.original is not None
            before, value = one.tensor.detach().to("cpu", copy=True), one.original
            done.append((one, value, before))
            one.original = before
            one.put(value)
    except BaseException:
        for one, value, before in done:
            one.put(before)
            one.original = value
        raise
