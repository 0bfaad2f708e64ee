"""Weights are held at most twice: as the model holds them, and as the graphs do that gain by it.

The constants of all models may take a share of the machine's memory.
"""

from __future__ import annotations

from normfuse.folding.frozen import FrozenWeights, living_frozen
from normfuse.freezing.machine import machine_memory
from normfuse.freezing.steadiness import give_up

__all__ = ["make_room", "too_large"]

_SHARE = 0.25

_TAKEN = "its weights are constants of another graph already, which reads fewer rows and gains more"


def make_room(state: FrozenWeights) -> str:
    """Take the weights of ``state`` from graphs that hold them, unless both can share them, or say why not.

    Graphs whose constants are stored alike share them. Of others one holds the weights, and a graph with few
    rows gains most: the step that decodes one token, and not the one that reads the prompt. Among equals the
    one that came last is the one that will be called again, as where sizes turn out to vary. A graph that
    loses its weights is compiled without them, once.
    """
    others = living_frozen()
    sharing = [one for one in others if one.shares(state)]
    for one in [one for one in sharing if not _is_current(one)]:
        one.release()  # its next call would find the change
        sharing.remove(one)
    can_share = state.is_shareable and all(one.is_shareable for one in sharing)
    state.held = {key: value for one in sharing for key, value in one.packed.items()} if can_share else None
    state.held = state.held or None  # who shares nothing may choose among all libraries
    rivals = [] if can_share else sharing
    if any(one.rows < state.rows for one in rivals):
        return _TAKEN
    held = sum(one.bytes for one in others if one not in sharing)
    if reason := too_large(state.bytes + held):
        return reason
    for one in rivals:
        if one.graph != state.graph:
            give_up(one.graph, [s for ref in one.sources if (s := ref()) is not None], _TAKEN)
        one.release()
    return ""


def _is_current(state: FrozenWeights) -> bool:
    sources = [source for ref in state.sources if (source := ref()) is not None]
    return len(sources) == len(state.sources) and state.is_current(sources)


def too_large(size: int) -> str:
    """Why constants of so many bytes, of all models together, are too many; empty where they are not."""
    if size <= _SHARE * machine_memory():
        return ""
    return (
        f"constants of {size / 2**30:.1f} GiB would take more than {_SHARE:.0%} of this machine's memory; "
        "normfuse.freeze='on' freezes all the same"
    )
