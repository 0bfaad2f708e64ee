"""Each product with a constant weight is given to the library that is best with it.

That is MKL, which Inductor takes for float32, oneDNN, the kernels of :mod:`normfuse.freezing.blocks`, or what
the model calls. On some processors MKL's products are the fastest, on others they take up to twice as long as
the others. And all add up in other orders: oneDNN, which adds one term after the other, was found up to 2.5
times as far from float64 as the model's own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.fx import Graph, Node

from normfuse.errors import cause
from normfuse.freezing.blocks import Blocks, Packed, blocks, packed_once
from normfuse.freezing.fastest import BLOCKS, MKL, ONEDNN, PLAIN, fastest, fastest_for_any
from normfuse.freezing.large_pages import Arena
from normfuse.inductor_compat import is_packable, mark_constant, register_product
from normfuse.ir.calls import aten
from normfuse.ir.emit import call
from normfuse.torch_compat import outside_tracing, size_hint

__all__ = ["Choices", "choosing_libraries"]

log = logging.getLogger("normfuse")

_here = threading.local()


@dataclass
class Choices:
    """Where products go: to any library, or only where weights are used that other graphs have in blocks.

    ``held`` are those weights, None where there is no such graph. ``packed`` are the weights that this graph
    has in blocks, in ``arena``, and ``has_others`` says whether a weight was packed in another way.
    """

    held: Packed | None
    packed: Packed = field(default_factory=dict)
    has_others: bool = False
    arena: Arena | None = None


@contextmanager
def choosing_libraries(held: Packed | None = None) -> Iterator[Choices]:
    """Within it, Inductor's freezing packs each weight for the library that is best with it, or for none."""
    _register()
    _here.choices = Choices(held)
    try:
        yield _here.choices
    finally:
        del _here.choices


@cache
def _register() -> None:
    """Put a pattern before Inductor's own, which applies only within :func:`choosing_libraries`."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return
    try:
        register_product(_is_ours, _write)
    except Exception as error:  # another Inductor: it packs for MKL, as it does without normfuse
        log.info("Inductor chooses the library of products: %s", cause(error))


def _is_ours(match: Any) -> bool:
    """Whether a product is not to be packed for MKL, as Inductor does."""
    choices: Choices | None = getattr(_here, "choices", None)
    if choices is None or not is_packable(match):
        return False
    choice = _choice(match.output_node(), choices)
    choices.has_others |= choice in (MKL, ONEDNN)
    return choice != MKL


def _choice(node: Node, choices: Choices) -> str:
    """The library of a product; Inductor's, MKL in float32, where normfuse has no say."""
    data, weight = node.args[-2:]
    if weight.op != "get_attr":  # type: ignore[union-attr]
        return MKL
    dtype, rows, held = data.meta["val"].dtype, _rows(node), _held(node)  # type: ignore[union-attr]
    total = _constant_bytes(node.graph)
    if dtype == torch.bfloat16 == held.dtype and isinstance(rows, int) and rows <= _FEW_ROWS:
        return BLOCKS if fastest(rows, held, total) == BLOCKS else MKL
    if dtype != torch.float32:
        return MKL
    if held.dtype != torch.float32:
        return PLAIN
    if not isinstance(rows, int):
        return fastest_for_any(size_hint(rows), held, total)
    return fastest(rows, held, total, () if choices.held is None else (BLOCKS,))


#: Of more rows in bfloat16 the kernels of blocks, which multiply row after row, are not the fastest.
_FEW_ROWS = 4


def _rows(node: Node) -> Any:
    return node.args[-2].meta["val"].shape[0]  # type: ignore[union-attr]


def _constant_bytes(graph: Graph) -> int:
    """How much memory all constants of a graph take."""
    found = (getattr(graph.owning_module, str(node.target)) for node in graph.find_nodes(op="get_attr"))
    tensors = {id(one): one for one in found if isinstance(one, torch.Tensor)}
    return sum(one.numel() * one.element_size() for one in tensors.values())


def _held(node: Node) -> torch.Tensor:
    held: torch.Tensor = getattr(node.graph.owning_module, str(node.args[-1].target))  # type: ignore[union-attr]
    return held


def _write(match: Any, *args: Any, **kwargs: Any) -> None:
    """Write a product as what was chosen for it, which is not MKL's."""
    node: Node = match.output_node()
    choice = _choice(node, _here.choices)
    with match.graph.inserting_before(node):
        if choice == ONEDNN:
            made = _for_onednn(node)
        elif choice == BLOCKS and (own := blocks()):
            given = (node.args[-2], _in_blocks(node, own), _bias(node), _held(node).shape[1])
            made = match.graph.call_function(own.multiply, given)
        else:
            _leave(node)
            return
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    match.graph.erase_node(node)


def _in_blocks(node: Node, own: Blocks) -> Node:
    """The weight of a product in blocks, as a constant of the graph."""
    owner, choices = node.graph.owning_module, _here.choices
    assert owner is not None
    choices.arena = choices.arena or Arena(_constant_bytes(node.graph))
    with outside_tracing():
        key, packed = packed_once(own, _held(node), {**(choices.held or {}), **choices.packed}, choices.arena)
    choices.packed[key] = packed
    mark_constant(packed)
    name = f"in_blocks_{sum(name.startswith('in_blocks_') for name, _ in owner.named_buffers())}"
    owner.register_buffer(name, packed)
    return node.graph.get_attr(name)


def _for_onednn(node: Node) -> Node:
    """The same product by oneDNN, whose weight is packed when the graph is frozen."""
    turned = call(node.graph, aten.permute.default, node.args[-1], [1, 0])
    packed = node.graph.call_function(torch.ops.mkldnn._reorder_linear_weight, (turned, _rows(node)))
    operator = torch.ops.mkldnn._linear_pointwise.default
    return node.graph.call_function(operator, (node.args[-2], packed, _bias(node), "none", [], ""))


def _leave(node: Node) -> None:
    """Turn the weight twice, so that Inductor does not find a product that it would pack for MKL."""
    turned = node.graph.call_function(aten.permute.default, (node.args[-1], (1, 0)))
    again = node.graph.call_function(aten.permute.default, (turned, (1, 0)))
    again.meta["val"] = node.args[-1].meta["val"]  # type: ignore[union-attr]
    node.args = (*node.args[:-1], again)


def _bias(node: Node) -> Any:
    return node.args[0] if len(node.args) == 3 and node.kwargs.get("beta", 1.0) != 0.0 else None
