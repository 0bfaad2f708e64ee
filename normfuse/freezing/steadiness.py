"""Weights that keep changing are not compiled into a graph again and again.

A change costs a compilation. The first is free; from then on a graph has to be called a thousand times for
each, on average, or it is compiled without its weights from then on, for as long as the weights live. Where
each call, or each model of many, brings weights of its own, those are gone when the graph is compiled again:
changes are counted all the same, and it is then compiled without weights at least once.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

__all__ = ["give_up", "note_change", "why_unsteady"]

CALLS_PER_CHANGE = 1000
_OFTEN = "its weights changed more often than once in 1,000 calls"


@dataclass
class _History:
    """What was seen of the weights of one graph."""

    weights: list[weakref.ref[torch.Tensor]] = field(default_factory=list)
    changes: int = 0
    calls: int = 0
    reason: str = ""
    is_new: bool = True

    def holds(self) -> bool:
        return any(weight() is not None for weight in self.weights)


_histories: dict[str, _History] = {}
#: So many graphs are remembered, and beyond those the ones whose weights live.
_MANY = 100


def note_change(graph: str, weights: Iterable[torch.Tensor], calls: int) -> str:
    """A graph was called ``calls`` times, and then with other weights; why it is not frozen again, if new."""
    history = _history(graph, weights)
    history.changes += 1
    history.calls += calls
    if history.reason or history.calls >= CALLS_PER_CHANGE * (history.changes - 1):
        return ""
    history.reason = _OFTEN
    return _OFTEN


def give_up(graph: str, weights: Iterable[torch.Tensor], reason: str) -> None:
    """Do not freeze a graph with these weights any more."""
    _history(graph, weights).reason = reason


def why_unsteady(graph: str) -> str:
    """Why a graph that is compiled now is not to be frozen; empty where it may be."""
    history = _histories.get(graph)
    if history is None or not history.reason:
        return ""
    if not history.is_new and not history.holds():
        del _histories[graph]
        return ""
    history.is_new = False
    return history.reason


def _history(graph: str, weights: Iterable[torch.Tensor]) -> _History:
    if len(_histories) > _MANY:
        for gone in [name for name, one in _histories.items() if name != graph and not one.holds()]:
            del _histories[gone]
    history = _histories.setdefault(graph, _History())
    history.weights = [weight for weight in history.weights if weight() is not None]
    known = {id(weight()) for weight in history.weights}
    history.weights += [weakref.ref(w) for w in weights if id(w) not in known]
    return history
