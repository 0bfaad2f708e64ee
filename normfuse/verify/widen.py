"""widen(f) = f with every floating cast, constant and computation in float64.

A dtype can enter an ATen graph in four ways, and each is widened: as a tensor (inputs and attributes), as a
``torch.dtype`` argument, as the default dtype (``run_wide`` sets it), and through defaults that depend on the
input's dtype. What cannot be widened, bit casts and quantization, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument, map_aggregate

from normfuse.errors import VerificationError
from normfuse.verify.dtype_defaults import fill_dtype_defaults
from normfuse.verify.dtypes import is_narrow, is_real_number, wide_dtype, widen_tensor
from normfuse.verify.fallbacks import FALLBACKS
from normfuse.verify.randomness import draws, widen_draw
from normfuse.verify.schema import bind, is_operator, known_dtype, operator_name, replace_argument

__all__ = ["widen"]

aten = torch.ops.aten

_DROPPED = frozenset({"aten::_assert_tensor_metadata"})
_AUTOCAST = frozenset({"_enter_autocast", "_exit_autocast"})
_CASTS = frozenset({aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default})


def widen(gm: GraphModule) -> GraphModule:
    """A copy of the pre-dispatch ATen graph ``gm`` that holds and computes every floating value in float64.

    Complex values become complex128; integers and booleans keep their dtypes; shapes are the same. The copy
    takes and returns flat values (a pytree signature is dropped) and shares no tensor with ``gm``. Autocast
    regions and metadata assertions are removed; submodules that are graphs are widened too. Execute it with
    ``run_wide``, under which factory functions without a dtype are wide as well.

    Raises ``VerificationError`` for bit casts, quantization, modules that are not graphs, and defaults that
    depend on a dtype which the graph does not record in ``node.meta["val"]``.
    """
    return _Widening(gm, ()).result()


class _Widening:
    """One graph on its way into float64."""

    def __init__(self, gm: GraphModule, dtypes: Sequence[torch.dtype | None]) -> None:
        self.gm = gm
        # A submodule's inputs may carry no record of their own: the caller knows their dtypes.
        self.given = dict(zip(gm.graph.find_nodes(op="placeholder"), dtypes, strict=False))
        self.graph = Graph()
        self.attributes: dict[str, object] = {}
        self.copies: dict[int, object] = {}
        self.nodes: dict[Node, Node] = {}

    def result(self) -> GraphModule:
        for node in self.gm.graph.nodes:
            if (copy := self.emit(node)) is not None:
                self.nodes[node] = copy
        return GraphModule(self.attributes, self.graph)

    def emit(self, node: Node) -> Node | None:
        if node.op == "call_method":
            raise VerificationError(
                f"{node.name} calls the method {node.target!r}; capture the program as ATen first."
            )
        if node.op in {"get_attr", "call_module"}:
            return self.attribute(node)
        if node.op != "call_function":
            return self.copy(node)
        if operator_name(node) in _DROPPED or getattr(node.target, "__name__", "") in _AUTOCAST:
            return None
        return self.call(node) if is_operator(node.target) else self.copy(node)

    def copy(self, node: Node) -> Node:
        copy = self.graph.node_copy(node, self.nodes.__getitem__)
        # The recorded values are of the narrow program.
        copy.meta = {k: v for k, v in node.meta.items() if k in {"stack_trace", "nn_module_stack"}}
        if node.op == "call_function":
            copy.args = _widen_dtypes(copy.args)  # type: ignore[assignment]
            copy.kwargs = _widen_dtypes(copy.kwargs)  # type: ignore[assignment]
        if node.target is torch.ops.higher_order.wrap_with_autocast:
            copy.args = (*node.args[:2], False, *copy.args[3:])
        return copy

    def attribute(self, node: Node) -> Node | None:
        name = str(node.target)
        value = _attribute(self.gm, name)
        if node.op == "call_module" and not isinstance(value, GraphModule):
            # torch.export's input guards check the narrow dtypes; they compute nothing.
            if name.endswith("_guards_fn") and not node.users:
                return None
            raise VerificationError(
                f"{node.name} calls {name}, a {type(value).__name__} that is not a graph."
            )
        if id(value) not in self.copies:
            self.copies[id(value)] = self.widened(value, name, node)
        self.attributes[name] = self.copies[id(value)]
        return self.copy(node)

    def widened(self, value: object, name: str, node: Node) -> object:
        if isinstance(value, GraphModule):
            return _Widening(value, [self.dtype(a) for a in node.args]).result()
        return widen_tensor(value, name) if isinstance(value, torch.Tensor) else value

    def call(self, node: Node) -> Node:
        _refuse(node)
        call = self.copy(node)
        source = node.args[0] if node.args else None
        fill_dtype_defaults(call, self.dtype(source))
        if node.target in _CASTS and self.converts(node, source):
            _make_copying(call)
        if node.target in FALLBACKS:
            call.target = FALLBACKS[node.target]
        return widen_draw(self.graph, node, call) if draws(node) else call

    def dtype(self, value: object) -> torch.dtype | None:
        """The dtype of a value of the captured program."""
        if isinstance(value, Node) and value.op == "get_attr":
            tensor = _attribute(self.gm, str(value.target))
            return tensor.dtype if isinstance(tensor, torch.Tensor) else None
        return known_dtype(value) or (self.given.get(value) if isinstance(value, Node) else None)

    def converts(self, node: Node, source: object) -> bool:
        """Whether a cast that does nothing in float64 made a new tensor in the captured program."""
        before, after = self.dtype(source), self.dtype(node)
        return before is not None and after is not None and before != after and is_real_number(before)


def _attribute(gm: GraphModule, name: str) -> object:
    value: object = gm
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _widen_dtypes(arguments: Argument) -> Argument:
    """Widen every ``torch.dtype``; an operator only takes one for a result or a computation."""
    return map_aggregate(arguments, lambda a: wide_dtype(a) if isinstance(a, torch.dtype) else a)


def _make_copying(call: Node) -> None:
    """Keep a cast that made a new tensor from becoming an alias, which later in-place updates would reach."""
    if call.target is aten.type_as.default:
        call.target = aten.to.other
    replace_argument(call, "copy", True)


def _refuse(node: Node) -> None:
    name = operator_name(node)
    if "quantize" in name:
        raise VerificationError(
            f"{node.name} ({name}) quantizes; rounding to a grid has no float64 counterpart."
        )
    if node.target is not aten.view.dtype:
        return
    target, source = bind(node)["dtype"], known_dtype(node.args[0])
    exact = (
        isinstance(target, torch.dtype)
        and source is not None
        and not is_narrow(target)
        and not is_narrow(source)
    )
    if not exact:
        raise VerificationError(
            f"{node.name} reinterprets the bits of a floating tensor, which widening changes."
        )
