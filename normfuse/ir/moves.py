"""What operators that move axes do together: where each axis went, whatever the spelling.

A value is followed as the axes that it had at the beginning, in the order in which its dimensions hold them;
a reshape may join axes, take them apart again and cut them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.factors import common_factors
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


_Dims = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Axes:
    """For each dimension of a value the numbers of the axes that it is made of, whose ``sizes`` these are.

    So it was ``first``, and so ``dims`` are now. An axis that a move cuts is two axes from then on, in both.
    One of size 1 is not followed: it may appear and vanish anywhere.
    """

    sizes: tuple[Any, ...]
    first: _Dims
    dims: _Dims

    @classmethod
    def of(cls, node: Node) -> Axes | None:
        """The axes of a value that moves begin with."""
        shape = shape_of(node)
        if shape is None:
            return None
        dims = tuple(() if same(size, 1) else (i,) for i, size in enumerate(shape))
        return cls(shape, dims, dims)

    @property
    def are_back(self) -> bool:
        """Whether each entry is where it was at first."""
        return self.dims == self.first

    def source_of(self, dim: int) -> int | None:
        """The dimension of the first value that one of this value is, whole; None where there is none."""
        made_of = self.dims[dim]
        return self.first.index(made_of) if made_of and made_of in self.first else None

    def behind(self, move: Node) -> Axes | None:
        """The axes behind one more move; None where sizes are not known to agree."""
        if is_call(move, *TURNS):
            return replace(self, dims=self._turned(move))
        shape = shape_of(move)
        return None if shape is None else self._counted_by(shape)

    def _turned(self, move: Node) -> _Dims:
        bound = bind(move)
        if "dims" in bound:
            return tuple(self.dims[d] for d in bound["dims"])
        dims = list(self.dims)
        a, b = bound.get("dim0", -2), bound.get("dim1", -1)
        dims[a], dims[b] = dims[b], dims[a]
        return tuple(dims)

    def _counted_by(self, shape: tuple[Any, ...]) -> Axes | None:
        """The axes by which a shape counts the elements; one that it cuts is several from now on."""
        axes = [axis for dim in self.dims for axis in dim]
        found = common_factors(
            [self.sizes[axis] for axis in axes], [size for size in shape if not same(size, 1)]
        )
        if found is None:
            return None
        sizes, parts, made = list(self.sizes), dict[int, tuple[int, ...]](), list[int]()
        for axis, count in zip(axes, found.left, strict=True):
            parts[axis] = tuple(range(len(sizes), len(sizes) + count)) if count > 1 else (axis,)
            sizes += found.sizes[len(made) : len(made) + count] if count > 1 else []
            made += parts[axis]
        first = tuple(tuple(part for axis in dim for part in parts[axis]) for dim in self.first)
        rest, runs = iter(made), iter(found.right)
        dims = (() if same(size, 1) else tuple(islice(rest, next(runs))) for size in shape)
        return Axes(tuple(sizes), first, tuple(dims))
