"""Whether a graph is compiled with its weights in it, and which of them.

Floating parameters, and whatever was folded, become constants where a product or a convolution reads them.
What the graph writes to or returns stays an input, and so does what it returns a function of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from normfuse.errors import OptionError
from normfuse.folding import is_refilled
from normfuse.freezing.products import LINEAR, Product, products
from normfuse.freezing.room import too_large
from normfuse.freezing.settled import settled
from normfuse.freezing.steadiness import why_unsteady
from normfuse.inductor_compat import freezes_by_itself
from normfuse.ir.effects import Effects
from normfuse.ir.program import Program, Role
from normfuse.ir.sizes import tensor_of
from normfuse.options import Options

__all__ = ["Freezing", "plan_freezing"]


@dataclass(frozen=True)
class Freezing:
    """What becomes constant: ``places`` of inputs, and the products that read them.

    ``written`` are the places of inputs that the graph writes to.
    """

    places: tuple[int, ...]
    products: tuple[Product, ...]
    written: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """The most rows that a product reads."""
        return max(product.rows for product in self.products)

    @property
    def bytes(self) -> int:
        """Memory of the weights that products read, each of which is stored again in another order."""
        sizes = {product.weight: product.bytes for product in self.products}
        return sum(sizes.values())

    @property
    def is_shareable(self) -> bool:
        """Whether the weights are matrices in float32, which may be stored alike for any number of rows."""
        weights = [tensor_of(product.weight) for product in self.products]
        is_float32 = all(w is not None and w.dtype == torch.float32 for w in weights)
        return is_float32 and all(product.node.target in LINEAR for product in self.products)


def plan_freezing(
    options: Options,
    settings: Mapping[str, Any],
    program: Program,
    folded: Sequence[Node],
    example_inputs: Sequence[Any],
    name: str,
) -> tuple[Freezing | None, str]:
    """What to freeze of a graph of this ``name``, or why nothing; no reason is given where that is plain.

    The graph takes the inputs of ``program``, and then those that are ``folded``.

    Raises:
        OptionError: where it was asked for and cannot be.
    """
    obstacle = _obstacle(options, settings, program, example_inputs)
    if obstacle is not None:
        if obstacle and options.freeze == "on":
            raise OptionError(f"normfuse.freeze='on' is not possible here: {obstacle}")
        return None, "" if obstacle in _PLAIN else obstacle
    reason = why_unsteady(name) or _refilled(program)
    if reason:
        return None, reason
    return _planned(options, program, folded)


_RECORDS = "gradients are recorded; call the model under torch.no_grad()"
_ELSEWHERE = "the model is not on a CPU, where alone frozen weights are faster and their changes seen in time"
_BY_ITSELF = (
    "torch._inductor.config.freezing has Inductor do it, which sees no change of a weight; unset it, and "
    "normfuse freezes and checks them"
)
_PLAIN = ("", _RECORDS, _ELSEWHERE)


def _obstacle(
    options: Options, settings: Mapping[str, Any], program: Program, example_inputs: Sequence[Any]
) -> str | None:
    if options.freeze == "off" or options.inner != "inductor" or "freezing" in settings:
        return ""
    if program.grad_enabled:
        return _RECORDS
    if freezes_by_itself():
        return _BY_ITSELF
    tensors = [value for value in example_inputs if isinstance(value, torch.Tensor)]
    if any(value.device.type != "cpu" for value in tensors):
        return _ELSEWHERE
    for given in program.inputs:
        if given.is_weight and (obstacle := _cannot_watch(given.value)):
            return f"{given.name} {obstacle}"
    return None


def _cannot_watch(value: torch.Tensor) -> str:
    if value.is_inference():
        return "was made under torch.inference_mode(), so its changes are not counted"
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided:
        return f"is a {type(value).__name__} of layout {value.layout}, whose memory cannot be watched"
    return ""


def _refilled(program: Program) -> str:
    """Which weight changes without a count, as those of sharded models do at every call; empty for none."""
    for given in program.inputs:
        if given.is_sharded or (given.is_weight and is_refilled(given.value)):
            return f"{given.name} is filled anew, as weights of sharded models are for every call"
    return ""


def _planned(options: Options, program: Program, folded: Sequence[Node]) -> tuple[Freezing | None, str]:
    graph = program.gm.graph
    effects = Effects(graph)
    given = [n for n in graph.nodes if n.op == "placeholder"]
    if _writes_to_several(given, effects):
        return None, "it writes to memory that several of its inputs lie in"
    staying = _staying(_candidates(given, program, folded), graph, effects)
    fixed = settled(program.gm, staying)
    if fixed.returns_constant:
        return None, "it returns a tensor that the graph holds, to which the caller may write"
    constant = [n for n in staying if n not in fixed.returned and n not in fixed.foreign]
    found = products(graph, constant)
    if not found:
        return None, "no product or convolution reads a weight" if options.freeze == "on" else ""
    if any(one.node.target not in LINEAR and not _is_packed(one.weight) for one in found):
        return None, "Inductor packs the weights of convolutions in float32, bfloat16 and float16 only"
    written = [place for place, node in enumerate(given) if effects.is_written(node)]
    plan = Freezing(tuple(given.index(n) for n in constant), tuple(found), tuple(written))
    reason = too_large(plan.bytes) if options.freeze == "auto" else ""
    return (None, reason) if reason else (plan, "")


def _is_packed(weight: Node) -> bool:
    value = tensor_of(weight)
    return value is not None and value.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _candidates(given: Sequence[Node], program: Program, folded: Sequence[Node]) -> list[Node]:
    """Floating parameters and folded weights."""
    is_weight = [i.role is Role.PARAMETER and i.value.is_floating_point() for i in program.inputs]
    return [node for node, is_one in zip(given, is_weight, strict=False) if is_one] + list(folded)


def _writes_to_several(given: Sequence[Node], effects: Effects) -> bool:
    """Whether inputs that are views of one another are written, for which Inductor passes others."""
    written = [memory for node in given if effects.is_written(node) for memory in effects.storages(node)]
    return len(set(written)) < len(written)


def _staying(nodes: Sequence[Node], graph: Graph, effects: Effects) -> list[Node]:
    """Those inputs that the graph neither writes to nor returns, as they are or as a view."""
    returned = set[int]()
    for node in graph.output_node().all_input_nodes:
        returned |= effects.memory(node) | effects.storages(node)
    return [
        node for node in nodes
        if not effects.is_written(node) and returned.isdisjoint(effects.storages(node))
    ]  # fmt: skip
