"""Every value of a rewritten program beside the original's, on every set of inputs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from normfuse.errors import VerificationError
from normfuse.verify.equivalence import LeafError
from normfuse.verify.input_sets import CAPTURED, InputSet
from normfuse.verify.judge import require_alike
from normfuse.verify.numerics import judge_but_overflow, judge_where_finite, one_rounding_off
from normfuse.verify.original import Known, Original
from normfuse.verify.reach import Reach
from normfuse.verify.second_look import judged_twice
from normfuse.verify.watch import Watch

__all__ = ["OUTPUT", "Fault", "Verdict", "measure_on"]

OUTPUT = -1
"""Stands for the outputs where others have the number of a site."""

_Key = tuple[int, int]
"""The number of a site and its place among the values of the original."""


@dataclass(frozen=True)
class Fault:
    """How far one value is over budget, on which inputs."""

    ratio: float
    inputs: str
    allowed: float = 1.0
    reason: str = ""

    def __str__(self) -> str:
        far = f"on {self.inputs} inputs the rewritten form was "
        if self.reason:
            return f"{far}further off than the original: {self.reason}"
        times = f"{self.ratio:.3g} times as far from float64 as the original"
        return f"{far}{times}, and {self.allowed:.3g} is allowed"


@dataclass
class Verdict:
    """The worst fault of each site over budget and of the outputs, and the sets that showed one.

    ``unjudged`` says of each output that no set has judged yet why.
    """

    faults: dict[int, Fault] = field(default_factory=dict)
    sets: list[InputSet] = field(default_factory=list)
    unjudged: dict[int, str] = field(default_factory=dict)
    _judged: set[int] = field(default_factory=set)

    @property
    def guilty(self) -> list[int]:
        """In execution order, the outputs last."""
        return sorted(self.faults, key=lambda index: (index < 0, index))

    def blame(self, index: int, fault: Fault, given: InputSet) -> None:
        if given not in self.sets:
            self.sets.append(given)
        if index not in self.faults or fault.ratio >= self.faults[index].ratio:
            self.faults[index] = fault

    def note_output(self, place: int, leaf: LeafError) -> None:
        if leaf.judged:
            self._judged.add(place)
            self.unjudged.pop(place, None)
        elif place not in self._judged:
            self.unjudged.setdefault(place, leaf.reason)


def measure_on(
    given: InputSet,
    original: Original,
    watch: Watch,
    verdict: Verdict,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Judge every value on one set of inputs; ``progress`` is told which comes next.

    Raises:
        VerificationError: when the original says nothing about such inputs.
    """
    assert watch.after is not None
    known = original.on(given)
    try:
        candidate = watch.after.run([*given.values, *watch.folded])
    except Exception as error:
        verdict.blame(OUTPUT, Fault(math.inf, given.name, reason=f"it does not run ({error})"), given)
        return
    values = {}
    for key, held in _paired(original, watch, known, candidate).items():
        try:
            require_alike("a value", *held)
            values[key] = held
        except VerificationError as error:
            if held[0].shape != held[2].shape or given.name != CAPTURED:
                raise
            verdict.blame(key[0], Fault(math.inf, given.name, reason=str(error)), given)
    _judge(values, _Again(given, original, watch), verdict, progress)


def _judge(
    values: Mapping[_Key, tuple[Tensor, Tensor, Tensor]],
    again: _Again,
    verdict: Verdict,
    progress: Callable[[str], None],
) -> None:
    given, watch = again.given, again.watch

    def judge_one(key: _Key, r: Tensor, c: Tensor, o: Tensor, reach: Reach) -> LeafError:
        if key[0] == OUTPUT:
            progress(f"output {key[1] + 1}, on {given.name} inputs")
            return judge_but_overflow(f"output {key[1]}", r, c, o, reach, hostile=given.hostile)
        progress(f"norm {key[0] + 1} of {len(watch.sites)}, on {given.name} inputs")
        return judge_where_finite(f"norm {key[0]}", r, c, o, reach)

    for (index, place), leaf in judged_twice(values, again, judge_one, given.hostile).items():
        if index == OUTPUT:
            verdict.note_output(place, leaf)
        if leaf.judged and not watch.gave_up(index):
            errors = watch.errors if index == OUTPUT else watch.sites[index].errors
            errors[given.name] = max(errors.get(given.name, 0.0), min(leaf.error_ratio, sys.float_info.max))
        if not leaf.ok:
            fault = Fault(leaf.error_ratio, given.name, leaf.allowed, leaf.reason)
            verdict.blame(index, fault, given)


@dataclass(frozen=True)
class _Again:
    """One set of inputs, to be looked at again."""

    given: InputSet
    original: Original
    watch: Watch

    def carried(self, draw: int) -> dict[_Key, Tensor]:
        found = self.original.carried(self.given, draw)
        return {key: found[key[1]] for key in _keys(self.original, self.watch)}

    def nearby(self, draw: int) -> dict[_Key, tuple[Tensor, Tensor, Tensor]]:
        assert self.watch.after is not None
        inputs = zip(self.watch.weights, self.given.values, strict=True)
        near: list[Any] = [v if is_weight else one_rounding_off(v, draw) for is_weight, v in inputs]
        known = self.original.run(near)
        with suppress(Exception):
            candidate = self.watch.after.run([*near, *self.watch.folded])
            return _paired(self.original, self.watch, known, candidate)
        raise VerificationError("the rewritten program does not take inputs that are one rounding off")


def _keys(original: Original, watch: Watch) -> list[_Key]:
    first = original.before.outputs
    return [*((OUTPUT, i) for i in range(first)), *((i, first + i) for i in watch.left)]


def _paired(
    original: Original, watch: Watch, known: Known, candidate: Sequence[Tensor]
) -> dict[_Key, tuple[Tensor, Tensor, Tensor]]:
    keys = _keys(original, watch)
    return {
        (index, place): (known.reference[place], c, known.oracle[place])
        for (index, place), c in zip(keys, candidate, strict=True)
    }
