"""What a change of weights would break.

    G(theta) = G'(f(theta))       by the rules, whatever theta is
    f(theta') = f(theta)          compared here, entry by entry, with all else that G' reads unchanged
    G(theta') = G(theta)          follows

A change of the weights ``theta`` of a model leaves the graph ``G`` the same function where all that the
rewritten graph ``G'`` reads is unchanged: folded weights ``f``, up to rounding, and weights that it reads as
they are, to the bit. Which rules ran, and why, does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from normfuse.folding import Folded
from normfuse.in_place.held import Held, Place
from normfuse.in_place.propose import Change, host_of, values_of
from normfuse.in_place.shown import Made, Norm, Shown
from normfuse.ir.location import described
from normfuse.ir.rounding import equals_to_rounding
from normfuse.torch_compat import outside_tracing

__all__ = ["broken"]

#: A folded weight is rounded once when it is stored, and what other weights do to it then once each.
_ROUNDINGS = 8
_NO_VALUES = "no values of the norm's own weights and statistics are known with which it would do nothing"


def broken(one: Shown, held: Held, change: Change, where: str = "") -> dict[Place, str]:
    """The tensors that must not change, with the reasons; ``where`` says in which call."""
    read = {
        place: f"{held.names[place]} is also read as it is{where}" for place in one.raw if place in change
    }
    if read:
        return read
    found: dict[Place, str] = {}
    values = values_of(change)
    for folded, made in one.folded:
        touched = [place for place in dict.fromkeys(made.places) if place in change]
        if touched and not _is_unchanged(made, change, values):
            stuck = _stuck(made, one, change)
            if stuck:
                found |= dict.fromkeys(stuck, f"{_NO_VALUES}{where}")
                continue
            idle = [place for place in touched if change[place].is_idle]
            reason = _reason(folded, made, one, held, idle, where)
            found |= dict.fromkeys(idle or touched, reason)
    return found


def _stuck(made: Made, one: Shown, change: Change) -> set[Place]:
    """What norms read that a weight was to take from them, and that would go on as they are."""
    norms = (norm for norm in one.norms if norm.is_folded and not norm.places.isdisjoint(made.places))
    return {p for norm in norms if _has_no_values(norm, change) for p in norm.places}


def _has_no_values(norm: Norm, change: Change) -> bool:
    is_composed = any(len(set(made.places)) > 1 for made in norm.operands.values())
    return norm.places.isdisjoint(change) and (is_composed or norm.spec.statistics == "stored")


def _is_unchanged(made: Made, change: Change, values: Mapping[Place, torch.Tensor]) -> bool:
    with outside_tracing():
        held = next((values[p] for p in made.places if p in change and change[p].made is made), None)
        before = made.compute({}, torch.float64) if held is None else held.double()
        after = made.compute(values, torch.float64).to(before.device)
    roundings = _ROUNDINGS * torch.finfo(made.recipe.dtype).eps / torch.finfo(torch.float64).eps
    return equals_to_rounding(after, before, roundings)


def _reason(folded: Folded, made: Made, one: Shown, held: Held, idle: list[Place], where: str) -> str:
    reader = next((described(user) for user in folded.node.users), "a reader")
    names = ", ".join(held.names[place] for place in idle) or held.names[made.places[0]]
    if idle and host_of(made, folded.node.meta["val"], one, held) is None:
        return f"{reader} has no weight or bias of its own that could take {names}{where}"
    return f"what {reader} reads is made of {made.recipe.label} in a way that cannot be stored{where}"
