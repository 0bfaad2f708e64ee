"""Where a positive number goes that multiplies each row of a value, up to norms, which take no notice of it.

    N(W (r x)) = N(W x)    but for eps

Operators on the way are linear, add nothing, and compute each row by itself. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from normfuse.analysis.contraction import CONTRACTIONS
from normfuse.analysis.places import runs_of
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import CASTS, aten, bind, is_call, known_as
from normfuse.ir.location import described
from normfuse.ir.moves import COPIES, RESHAPES, TURNS
from normfuse.ir.readers import value_readers
from normfuse.ir.region import norm_of
from normfuse.ir.sizes import same_shape, shape_of, tensors_of
from normfuse.report import Refusal

__all__ = ["Rows", "rows_of"]

#: For each axis of a value whether the number may differ along it.
_Differs = tuple[bool, ...]


@dataclass
class Rows:
    """The operators between a norm and the norms ``ends``, in execution order, those left out."""

    path: list[Node] = field(default_factory=list)
    ends: list[Node] = field(default_factory=list)


def rows_of(norm: Node, weights: WeightValues, is_end: Callable[[Node, Node], bool]) -> Rows | Refusal:
    """All that reads the rows of a norm of the last axis; ``is_end`` says of a norm whether it may be one."""
    found, rank = Rows(), len(shape_of(norm) or ())
    refusal = _follow(norm, (*[True] * (rank - 1), False), weights, is_end, found)
    found.path.sort()
    if refusal is None and not found.ends:
        return Refusal("raw_reader", f"nothing reads {described(norm)}", norm.name)
    return found if refusal is None else refusal


def _follow(
    value: Node, differs: _Differs, weights: WeightValues, is_end: Callable[[Node, Node], bool], found: Rows
) -> Refusal | None:
    if any(tensor.dtype == torch.float16 for tensor in tensors_of(value)):
        message = f"values of any size may be too large for float16, in which {described(value)} is"
        return Refusal("overflow", message, value.name, "keep the values in a wider dtype")
    for user in value_readers(value):
        region = norm_of(user)
        if region is not None and is_end(user, value) and not any(differs[d] for d in region.spec.dims):
            found.ends.append(user)
            continue
        behind = None if region is not None else _behind(user, value, differs, weights)
        if behind is None:
            return _notices(user, value)
        found.path.append(user)
        refusal = _follow(user, behind, weights, is_end, found)
        if refusal is not None:
            return refusal
    return None


def _behind(user: Node, value: Node, differs: _Differs, weights: WeightValues) -> _Differs | None:
    if is_call(user, *COPIES, *CASTS):
        return differs
    if is_call(user, *TURNS):
        bound, dims = bind(user), list(range(len(differs)))
        a, b = bound.get("dim0", -2), bound.get("dim1", -1)
        dims[a], dims[b] = dims[b], dims[a]
        return tuple(differs[axis] for axis in bound.get("dims", dims))
    if is_call(user, *RESHAPES) and user.args[0] is value:
        return _reshaped(user, value, differs)
    if is_call(user, aten.mul.Tensor):
        others = [other for other in user.args[:2] if other is not value]
        scales = len(others) == 1 and (not isinstance(others[0], Node) or others[0] in weights)
        return differs if scales and same_shape(user, value) else None
    return _contracted(user, value, differs, weights) if known_as(user) in CONTRACTIONS else None


def _reshaped(user: Node, value: Node, differs: _Differs) -> _Differs | None:
    """Where axes are joined, the number may differ along the whole of what they become."""
    after = shape_of(user) or ()
    runs, made = runs_of(shape_of(value) or (), after), [True] * len(after)
    for old, new in runs or ():
        made[new] = [any(differs[old])] * (new.stop - new.start)
    return None if runs is None else tuple(made)


def _contracted(user: Node, value: Node, differs: _Differs, weights: WeightValues) -> _Differs | None:
    """Behind a product with weights that sums over axes along which the number is one."""
    product = CONTRACTIONS[known_as(user)](user, bind(user))
    own = [] if product is None else [factor for factor in product.factors if factor.node is value]
    if product is None or len(own) != 1 or product.windows or product.addend is not None:
        return None
    rest = [factor.node for factor in product.factors if factor is not own[0]]
    letters = {letter for letter, one in zip(own[0].letters, differs, strict=True) if one}
    if not all(node in weights for node in rest) or not letters <= set(product.out):
        return None
    return tuple(letter in letters for letter in product.out)


def _notices(user: Node, value: Node) -> Refusal:
    if user.op == "output":
        return Refusal("norm_is_output", f"{described(value)} is returned, as it is", value.name)
    message = f"{described(user)} reads {described(value)}, whose rows have a length that it takes notice of"
    return Refusal("raw_reader", message, user.name)
