"""What reads a norm, where that is products alone: the rows of a product can be scaled afterwards.

W (r * x) + b = r * (W x) + b,   r a number for each row of x
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.emit import call
from normfuse.ir.sizes import rank_of, same, shape_of

__all__ = ["Product", "products_behind", "replayed"]

#: Products with a matrix: the data, the matrix, and what is added.
_PRODUCTS = {
    aten.linear.default: ("input", "weight", "bias"),
    aten.addmm.default: ("mat1", "mat2", "self"),
    aten.mm.default: ("self", "mat2", None),
    aten.matmul.default: ("self", "other", None),
}
#: Operators that give back the same rows, or some of them.
_SAME = (aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default)
_PARTS = (aten.slice.Tensor, aten.select.int)
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class Product:
    """A product of the rows of a norm.

    Attributes:
        node: the product.
        path: the operators between the norm and the product, which leave each row in one piece.
        data: the name of the argument that the last of them, or the norm, is.
        weight, bias: the matrix, and what is added to the product.
    """

    node: Node
    path: tuple[Node, ...]
    data: str
    weight: Node
    bias: Node | None

    def __lt__(self, other: Product) -> bool:
        """In the order of the graph."""
        return self.node < other.node

    @property
    def is_linear(self) -> bool:
        """Whether the matrix is stored output by output."""
        return is_call(self.node, aten.linear.default)


def products_behind(norm: Node) -> tuple[list[Product], Node | None]:
    """The products that read a norm, and the first reader that is none."""
    found = list(_behind(norm, ()))
    products = [one for one in found if isinstance(one, Product)]
    return products, next((one for one in found if isinstance(one, Node)), None)


def _behind(value: Node, path: tuple[Node, ...]) -> Iterator[Product | Node]:
    for user in value.users:
        if _keeps_rows(user, value):
            yield from _behind(user, (*path, user))
        else:
            yield _product(user, value, path) or user


def _keeps_rows(user: Node, value: Node) -> bool:
    before, after = shape_of(value), shape_of(user)
    if before is None or after is None or list(user.all_input_nodes).count(value) != 1 or not after:
        return False
    if is_call(user, *_PARTS):
        dim = bind(user)["dim"]
        return bool((dim + len(before) if dim < 0 else dim) != len(before) - 1)
    return is_call(user, *_SAME, *_VIEWS) and same(before[-1], after[-1]) and user.args[0] is value


def _product(user: Node, value: Node, path: tuple[Node, ...]) -> Product | None:
    if not is_call(user, *_PRODUCTS):
        return None
    data, matrix, more = _PRODUCTS[user.target]  # type: ignore[index]
    bound = bind(user)
    weight, bias = bound[matrix], bound[more] if more else None
    is_scaled = bound.get("alpha", 1) != 1 or bound.get("beta", 1) != 1
    if is_scaled or bound[data] is not value or value in (weight, bias) or rank_of(weight) != 2:
        return None
    return Product(user, path, data, weight, bias)


def replayed(path: tuple[Node, ...], value: Node) -> Node:
    """What the operators of a path make of ``value`` in the place of the norm: rows, or a number a row.

    It need not lie row after row, as a norm does: what was a view of that may be a copy of this.
    """
    for step in path:
        given, target = list(step.args[1:]), step.target
        if is_call(step, *_VIEWS):
            target = aten.reshape.default
            if same((shape_of(value) or (0,))[-1], 1):
                given = [[*given[0][:-1], 1]]  # type: ignore[index, misc]
        value = call(value.graph, target, value, *given, **step.kwargs)  # type: ignore[arg-type]
    return value
