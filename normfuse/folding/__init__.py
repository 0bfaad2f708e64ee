"""Folded weights: how they are computed, kept, shared, and kept up to date."""

from normfuse.folding.recipe import Folded, Recipe
from normfuse.folding.store import FoldedWeight, Slot, invalidate

__all__ = ["Folded", "FoldedWeight", "Recipe", "Slot", "invalidate"]
