"""What becomes of scores before a softmax, and whether that takes no notice of a number that all share.

    softmax(f(a + n)) = softmax(f(a))

for an ``f`` that multiplies by a number, adds anything, or hides keys with ``-inf``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from normfuse.analysis.channel_map import dtype_of
from normfuse.analysis.places import runs_of
from normfuse.ir.calls import CASTS, aten, bind, is_call
from normfuse.ir.moves import COPIES, RESHAPES
from normfuse.ir.readers import value_readers
from normfuse.ir.sizes import has_entries, rank_of, same, shape_of, widened_by

__all__ = ["Scores", "sums_to_one"]

_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_SUMS = (aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar)
_PRODUCTS = (aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar)
_HIDES = (aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.self, aten.where.ScalarOther)


@dataclass(frozen=True)
class Scores:
    """A value that gains a number which is the same along each of ``axes``, counted from the end."""

    node: Node
    axes: frozenset[int]

    def are_normalized(self) -> bool:
        """Whether all that reads the scores is a softmax along such an axis, in the end."""
        return all(self._is_unnoticed_by(user) for user in value_readers(self.node))

    def _is_unnoticed_by(self, user: Node) -> bool:
        if is_call(user, *_SOFTMAX):
            return _from_end(bind(user)["dim"], self.node) in self.axes
        behind = self._behind(user)
        return behind is not None and behind.are_normalized()

    def _behind(self, user: Node) -> Scores | None:
        axes = self._axes_behind(user)
        return None if axes is None else replace(self, node=user, axes=axes)

    def _axes_behind(self, user: Node) -> frozenset[int] | None:
        if is_call(user, *_SUMS, *COPIES) or (is_call(user, *CASTS) and widened_by(user) >= 0):
            return self.axes
        if is_call(user, *_PRODUCTS):
            return self._multiplied(user)
        if is_call(user, *RESHAPES) and user.args[0] is self.node:
            return self._reshaped(user)
        if is_call(user, *_HIDES):
            return self.axes if self._is_hidden_by(bind(user)) else None
        return None

    def _multiplied(self, user: Node) -> frozenset[int] | None:
        """The number is multiplied too, and must not be by what differs along the axis."""
        left, right = user.args[:2]
        other = right if left is self.node else left
        if other is left and is_call(user, aten.div.Tensor):
            return None
        return frozenset(a for a in self.axes if not isinstance(other, Node) or _is_flat(other, a))

    def _reshaped(self, user: Node) -> frozenset[int]:
        before, after = shape_of(self.node) or (), shape_of(user) or ()
        kept = {
            old.start - len(before): new.start - len(after)
            for old, new in runs_of(before, after) or ()
            if old.stop - old.start == new.stop - new.start == 1
        }
        return frozenset(kept[axis] for axis in self.axes if axis in kept)

    def _is_hidden_by(self, bound: dict[str, Any]) -> bool:
        """Whether what takes the place of scores is so low that it has no weight, whatever the others are."""
        given = (bound.get("self"), bound.get("other", bound.get("value")))
        numbers = [_number(one) for one in given if one is not self.node]
        lowest = torch.finfo(dtype_of(self.node)).min
        return all(number is not None and number <= lowest for number in numbers)


def sums_to_one(node: Node, axis: int) -> bool:
    """Whether a value is known to sum to one along an axis, or to hold NaN there."""
    axis = _from_end(axis, node)
    while (is_call(node, *CASTS) and dtype_of(node).is_floating_point) or is_call(node, *COPIES, *RESHAPES):
        (source, *_) = node.all_input_nodes
        before, after = shape_of(source) or (), shape_of(node) or ()
        runs = runs_of(before, after) or ()
        kept = [old.start - len(before) for old, new in runs if _alone(old, new, len(after) + axis)]
        if len(kept) != 1:
            return False
        node, axis = source, kept[0]
    sums = is_call(node, *_SOFTMAX) and _from_end(bind(node)["dim"], node) == axis
    return sums and has_entries(node, axis)


def _alone(old: slice, new: slice, axis: int) -> bool:
    return new == slice(axis, axis + 1) and old.stop - old.start == 1


def _from_end(axis: int, node: Node) -> int:
    return axis if axis < 0 else axis - rank_of(node)


def _is_flat(node: Node, axis: int) -> bool:
    shape = shape_of(node) or ()
    return len(shape) < -axis or same(shape[axis], 1)


def _number(value: Any) -> float | None:
    """The number that an argument is, by itself or in every entry."""
    while is_call(value, *CASTS, *COPIES, aten.expand.default):
        value = value.args[0]
    if is_call(value, aten.full.default, aten.scalar_tensor.default):
        bound = bind(value)
        value = bound.get("fill_value", bound.get("s"))
    return float(value) if isinstance(value, (int, float)) else None
