"""Whether the graph of another class computes what a rewritten one does, and which weight stands where.

Walking back from the results, every step has to be the same operator on the same operands; in which order the
two graphs compute them does not matter. The other class may have a weight or a bias where the rewritten graph
has none: it holds what does nothing then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from normfuse.checkpoint.outline import Outline, Ref, Step
from normfuse.ir.calls import aten
from normfuse.ir.spec import NormSpec

__all__ = ["Match", "matched"]

#: Operators with a bias behind weights, which one of zeros leaves as it was; the place of the bias.
_BIASED = {
    str(op): 2 for op in (aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
}
_SCALE, _SHIFT = 2, 3
_IN_PLACE = re.compile(r"(?<!_)_\.\w+$")


@dataclass
class Match:
    """By the names of inputs of the other graph: ``pairs`` are inputs of the rewritten one, ``neutral`` are
    the entries of weights that have no counterpart there.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    neutral: dict[str, float] = field(default_factory=dict)


def matched(ours: Outline, theirs: Outline) -> Match | str:
    """The match of two graphs; a sentence about the first difference when there is none."""
    found, seen = Match(), set[tuple[int, int]]()
    stack: list[tuple[Any, Any, Step | None]] = [(ours.results, theirs.results, None)]
    while stack:
        one, other, reader = stack.pop()
        pairs = _parts(one, other, found)
        if isinstance(one, Ref) and isinstance(one.to, int) and pairs is not None:
            if (one.to, other.to) in seen:
                continue
            seen.add((one.to, other.to))
            reader = ours.steps[one.to]
            pairs = _operands(reader, theirs.steps[other.to], found)
        if pairs is None:
            return f"{reader.shown} has no counterpart in it" if reader else "it returns something else"
        stack += [(a, b, reader) for a, b in pairs]
    if found.neutral.keys() & found.pairs.keys():
        return "it reads a weight in several places, of which some have no counterpart"
    return found


def _parts(one: Any, other: Any, found: Match) -> list[tuple[Any, Any]] | None:
    """What has to be the same in two values that are to be; None where they are not."""
    if isinstance(one, Ref) and isinstance(other, Ref) and type(one.to) is type(other.to):
        if isinstance(other.to, str) and found.pairs.setdefault(other.to, str(one.to)) != one.to:
            return None
        return []
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return list(zip(one, other, strict=True))
    return [] if type(one) is type(other) and one == other else None


def _operands(ours: Step, theirs: Step, found: Match) -> list[tuple[Any, Any]] | None:
    """The operands of two steps that are to be the same, two by two; None for steps that differ."""
    entries = _entries(ours, theirs)
    if entries is None or len(ours.operands) != len(theirs.operands):
        return None
    if isinstance(ours.what, str) and _IN_PLACE.search(ours.what):
        return None  # what it writes to may be read before and after
    pairs = []
    for place, (one, other) in enumerate(zip(ours.operands, theirs.operands, strict=True)):
        is_extra = one is None and isinstance(other, Ref) and isinstance(other.to, str)
        if is_extra and place in entries:
            if found.neutral.setdefault(other.to, entries[place]) != entries[place]:
                return None
        else:
            pairs.append((one, other))
    return pairs


def _entries(ours: Step, theirs: Step) -> Mapping[int, float] | None:
    """By the place of an operand, the entry with which it does nothing; None for steps that differ."""
    one, other = ours.what, theirs.what
    if isinstance(one, NormSpec) and isinstance(other, NormSpec):
        if one.has_shift > other.has_shift or one.has_scale > other.has_scale:
            return None
        entries = {_SCALE: 1.0 - other.weight_offset} if other.has_scale and not one.has_scale else {}
        entries |= {_SHIFT: 0.0} if other.has_shift and not one.has_shift else {}
        return entries if _core(one, one) == _core(other, one) else None
    if type(one) is not type(other) or one != other:
        return None
    return {_BIASED[one]: 0.0} if isinstance(one, str) and one in _BIASED else {}


def _core(spec: NormSpec, rewritten: NormSpec) -> NormSpec:
    """What has to be equal where the rewritten norm has no weight, or no bias.

    A weight of ones and a bias of zeros are exact in every dtype; where the core alone is left it is rounded
    to the dtype of the result in any case.
    """
    core = replace(spec, has_scale=False, has_shift=False)
    if not rewritten.has_scale:
        core = replace(core, weight_offset=0.0, affine_dims=())
    if not rewritten.has_scale and not rewritten.has_shift:
        core = replace(core, scale_dtype=core.out_dtype)
    return core
