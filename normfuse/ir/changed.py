"""A copy of a frozen dataclass with some fields changed; recognition makes a million in a large graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["changed"]

if TYPE_CHECKING:  # the type checker knows which fields replace() takes
    from dataclasses import replace as changed
else:
    T = TypeVar("T")

    def changed(value: T, /, **fields: Any) -> T:
        """``dataclasses.replace`` in a tenth of its time, for classes without ``__post_init__``."""
        made = object.__new__(type(value))
        made.__dict__.update(value.__dict__, **fields)
        return made
