"""Folded weights: how they are computed, kept, shared, and kept up to date."""

from normfuse.folding.premise import Asked, BrokenPremiseError, Fact, Premise, Question
from normfuse.folding.recipe import Folded, Recipe
from normfuse.folding.slot import Slot, Slots
from normfuse.folding.store import FoldedWeight, invalidate
from normfuse.folding.watch import Watch, can_watch
from normfuse.folding.writers import is_refilled, watch_writers

__all__ = [
    "Asked",
    "BrokenPremiseError",
    "Fact",
    "Folded",
    "FoldedWeight",
    "Premise",
    "Question",
    "Recipe",
    "Slot",
    "Slots",
    "Watch",
    "can_watch",
    "invalidate",
    "is_refilled",
    "watch_writers",
]
