"""Folded weights in the place of a model's own, such that the model stays the same function."""

from normfuse.in_place.applied import Applied
from normfuse.in_place.applying import apply

__all__ = ["Applied", "apply"]
