"""Folded weights: how they are computed, kept, shared, and kept up to date."""

from normfuse.folding.recipe import Folded, Recipe
from normfuse.folding.slot import Slot, Slots
from normfuse.folding.store import FoldedWeight, invalidate

__all__ = ["Folded", "FoldedWeight", "Recipe", "Slot", "Slots", "invalidate"]
