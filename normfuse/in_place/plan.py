"""From the calls of a model to a change of its weights with which it is the same function in all of them.

Every call proposes, every call judges, and what one of them cannot have changed is fixed, until none objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from normfuse.in_place.broken import broken
from normfuse.in_place.held import Held, Place
from normfuse.in_place.propose import Change, host_of, propose
from normfuse.in_place.shown import Shown, shown
from normfuse.ir.program import Program
from normfuse.ir.rounding import equals_to_rounding
from normfuse.options import Options
from normfuse.report import Report

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """What to write, by place; ``settled`` says that weights hold already what would be written."""

    change: Change
    report: Report
    settled: bool = False
    left: dict[str, str] = field(default_factory=dict)


def plan(calls: Sequence[Callable[[], Program]], held: Held, options: Options) -> Plan:
    """The largest change that this way of proposing finds; ``calls`` give the programs anew each time."""
    while True:
        ways = [shown(call(), held, options) for call in calls]
        proposed: Change = {}
        for one in ways:
            propose(one, held, proposed)
        change = {place: new for place, new in proposed.items() if not _holds(held, place, new.value)}
        objections: dict[Place, str] = {}
        for number, one in enumerate(ways):
            where = f" in call {number + 1} of those that were shown" if number else ""
            objections |= broken(one, held, change, where)
        if not objections:
            settled = bool(proposed) and not change
            return Plan(change, ways[0].report, settled, _left(ways[0], held, proposed))
        held.fix(objections)


def _holds(held: Held, place: Place, value: torch.Tensor) -> bool:
    return equals_to_rounding(held.tensors[place].detach().cpu(), value.double())


def _left(one: Shown, held: Held, proposed: Change) -> dict[str, str]:
    """Weights that the rules would change and that stay, with the reasons."""
    found: dict[str, str] = {}
    for folded, made in one.folded:
        host = host_of(made, folded.node.meta["val"], one, held)
        if host is not None or any(place in proposed for place in made.places):
            continue
        for place in made.places:
            reason = held.fixed.get(place, "the model computes what it reads from it")
            found.setdefault(held.names.get(place, "a constant"), reason)
    return found
