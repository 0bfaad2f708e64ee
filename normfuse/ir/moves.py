"""What operators that move axes do together: where each axis went, whatever the spelling.

A value is followed as the axes that it had at the beginning, in the order in which its dimensions hold them;
a reshape may join axes and take them apart again, but not cut one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.sizes import same, shape_of

__all__ = ["COPIES", "RESHAPES", "TURNS", "Axes", "is_move"]

#: Operators that count the same elements, in the same order, by other axes.
RESHAPES = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.reshape_as.default, aten.view_as.default,
)  # fmt: skip
#: Operators that return their input, at most laid out anew.
COPIES = (aten.clone.default, aten.contiguous.default, aten.alias.default)
#: Operators that return views with the axes in another order.
TURNS = (aten.transpose.int, aten.mT.default, aten.permute.default)


def is_move(node: Node) -> bool:
    """Whether an operator returns the entries of its first operand, at most in other places."""
    return is_call(node, *RESHAPES, *COPIES, *TURNS)


@dataclass(frozen=True)
class Axes:
    """For each dimension of a value the numbers of the first value's axes that it is made of.

    An axis of size 1 is not followed: it may appear and vanish anywhere.
    """

    sizes: tuple[Any, ...]
    dims: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, node: Node) -> Axes | None:
        """The axes of a value that moves begin with."""
        shape = shape_of(node)
        if shape is None:
            return None
        return cls(shape, tuple(() if same(size, 1) else (i,) for i, size in enumerate(shape)))

    def behind(self, move: Node) -> Axes | None:
        """The axes behind one more move; None where it cuts one, or sizes are not known to agree."""
        if is_call(move, *TURNS):
            return replace(self, dims=self._turned(move))
        return self._counted_by(shape_of(move))

    def _turned(self, move: Node) -> tuple[tuple[int, ...], ...]:
        bound = bind(move)
        if "dims" in bound:
            return tuple(self.dims[d] for d in bound["dims"])
        dims = list(self.dims)
        a, b = bound.get("dim0", -2), bound.get("dim1", -1)
        dims[a], dims[b] = dims[b], dims[a]
        return tuple(dims)

    def _counted_by(self, shape: tuple[Any, ...] | None) -> Axes | None:
        left = [axis for dim in self.dims for axis in dim]
        dims = []
        for size in shape or ():
            count: Any = 1
            taken: list[int] = []
            while not same(count, size):
                if not left:
                    return None
                taken.append(left.pop(0))
                count = count * self.sizes[taken[-1]]
            dims.append(tuple(taken))
        return None if shape is None else replace(self, dims=tuple(dims))
