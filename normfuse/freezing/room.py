"""Weights are held at most twice: as the model holds them, and as one graph does that gains by it."""

from __future__ import annotations

from normfuse.folding.frozen import FrozenWeights, living_frozen
from normfuse.freezing.steadiness import give_up

__all__ = ["make_room"]

_TAKEN = "its weights are constants of another graph already, which reads fewer rows and gains more"


def make_room(state: FrozenWeights) -> str:
    """Take the weights of ``state`` from graphs that hold them, or say why not.

    A graph with few rows gains most: the step that decodes one token, and not the one that reads the prompt.
    Among equals the one that came last is the one that will be called again, as where sizes turn out to vary.
    A graph that loses its weights is compiled without them, once.
    """
    rivals = [one for one in living_frozen() if one.shares(state)]
    if any(one.rows < state.rows for one in rivals):
        return _TAKEN
    for one in rivals:
        if one.graph != state.graph:
            give_up(one.graph, [s for ref in one.sources if (s := ref()) is not None], _TAKEN)
        one.release()
    return ""
