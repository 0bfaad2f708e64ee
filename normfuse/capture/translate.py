"""A Dynamo graph as whole ATen operators, node by node: still differentiable, composite operators intact.

Each call is run once on its fake operands while a recorder watches the dispatcher. What has a
graph inside (checkpointing, conditions, attention with a score function) and what changes the
state that the graph runs in is carried over as it is. Autocast regions become the casts that they
make, so the result must run with autocast off.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_iter, tree_leaves

from normfuse.capture.memory import Expansions
from normfuse.capture.recorder import Recorder
from normfuse.capture.regions import ENTERS_AUTOCAST, EXITS_AUTOCAST, Regions
from normfuse.capture.spell_out import spell_out
from normfuse.capture.symbols import SYMBOLIC, Symbols
from normfuse.capture.transforms import Transforms
from normfuse.errors import UncapturableError
from normfuse.torch_compat import (
    FakeTensor,
    FakeTensorMode,
    enable_python_dispatcher,
    graph_module,
    is_traceable_wrapper_subclass,
    is_transformed,
)

__all__ = ["translate"]

_TRANSFORMED = "operators under a transformation of torch.func (vmap, grad) are left as they are"


def translate(gm: GraphModule) -> tuple[GraphModule, list[str]]:
    """Translate ``gm``, whose nodes carry the fake values that Dynamo found for them.

    The result has one placeholder for each of ``gm``, in order. With it comes what a person should know
    about parts that were not looked into.

    Raises:
        UncapturableError: when the graph does something that ATen operators cannot say, with the reason.
    """
    translator = _Translator(gm)
    with _watching(_mode_of(gm), translator.regions):
        for node in gm.graph.nodes:
            translator.run(node)
    notes = [_TRANSFORMED] if translator.transforms.hides_numbers else []
    made = graph_module(translator.attributes, translator.graph)
    return made, notes + spell_out(made)


def _mode_of(gm: GraphModule) -> FakeTensorMode:
    """The mode that Dynamo traced in: not the one it hands to backends."""
    values = (node.meta.get("example_value") for node in gm.graph.nodes)
    for leaf in tree_iter(list(values)):
        if isinstance(leaf, FakeTensor):
            return leaf.fake_mode
    return FakeTensorMode()


@contextmanager
def _watching(fake_mode: FakeTensorMode, regions: Regions) -> Iterator[None]:
    shape_env = fake_mode.shape_env
    ignoring = shape_env.ignore_fresh_unbacked_symbols() if shape_env is not None else regions.nothing()
    with regions.restored(), fake_mode, enable_python_dispatcher(), ignoring:
        yield


class _Translator:
    """One graph on its way; ``values`` holds what each node of the original has become."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self.graph = Graph()
        self.attributes: dict[str, Any] = {}
        self.regions = Regions(self.graph)
        self.transforms = Transforms()
        self._values: dict[Node, Any] = {}
        self._symbols = Symbols(self.graph)
        self._recorder = Recorder(self.graph, self._symbols, self.attributes)
        self._expansions = Expansions()

    def run(self, node: Node) -> None:
        if node.op.startswith("call") and self.transforms.covers(node):
            self._values[node] = self._carried(node)
        else:
            self._values[node] = getattr(self, f"_{node.op}")(node)

    def _placeholder(self, node: Node) -> Node:
        made = self.graph.placeholder(str(node.target))
        made.meta = {**_inherited(node), "val": node.meta["example_value"]}
        self._symbols.learn(made.meta["val"], made)
        return made

    def _output(self, node: Node) -> Node:
        made: Node = self.graph.output(self._rewritten(node.args[0]))
        made.meta = _inherited(node)
        return made

    def _get_attr(self, node: Node) -> Node:
        value = operator.attrgetter(str(node.target))(self._gm)
        name = str(node.target).replace(".", "_")
        self.attributes[name] = value
        made = self.graph.get_attr(name)
        made.meta = {**_inherited(node), "val": node.meta.get("example_value", value)}
        return made

    def _call_module(self, node: Node) -> Any:
        module = self._gm.get_submodule(str(node.target))
        return self._recorded(node, module)

    def _call_method(self, node: Node) -> Any:
        def method(owner: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(owner, str(node.target))(*args, **kwargs)

        return self._recorded(node, method)

    def _call_function(self, node: Node) -> Any:
        target: Any = node.target
        if target in ENTERS_AUTOCAST:
            return self.regions.enter(*node.args)  # type: ignore[arg-type]
        if target in EXITS_AUTOCAST:
            return self.regions.leave(self._values[node.args[0]])  # type: ignore[index]
        if target is operator.getitem and self._reads_a_list(node):
            return self._part(node)
        if isinstance(target, HigherOrderOperator):
            with self.regions.spelled_out():
                return self._carried(node)
        if self._is_bookkeeping(node):
            self.regions.apply(target, node.args)
            return self._calculated(node) if self._is_of_constants(node) else self._carried(node)
        return self._recorded(node, target)

    def _is_of_constants(self, node: Node) -> bool:
        """Whether a call makes a number of numbers that have been written in the place of open ones."""
        return isinstance(node.meta.get("example_value"), SYMBOLIC) and not self._operands(node)

    def _calculated(self, node: Node) -> Any:
        args, kwargs = self._rewritten((node.args, node.kwargs))
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _reads_a_list(self, node: Node) -> bool:
        owner = self._rewritten(node.args[0])
        return isinstance(owner.meta.get("val") if isinstance(owner, Node) else owner, (list, tuple))

    def _part(self, node: Node) -> Any:
        owner, key = self._rewritten(node.args)
        return self._carried(node) if isinstance(owner, Node) else owner[key]

    def _is_bookkeeping(self, node: Node) -> bool:
        """Whether a call neither reads nor makes a tensor."""
        values = [made.meta.get("val") for made in self._operands(node)]
        made = node.meta.get("example_value")
        return not any(isinstance(v, (torch.Tensor, list, tuple)) for v in (*values, made))

    def _rewritten(self, value: Any) -> Any:
        return map_arg(value, self._values.__getitem__)

    def _operands(self, node: Node) -> list[Node]:
        found: list[Node] = []
        map_arg(self._rewritten((node.args, node.kwargs)), found.append)
        return found

    def _carried(self, node: Node) -> Node:
        args, kwargs = self._rewritten((node.args, node.kwargs))
        made = self.graph.create_node(node.op, node.target, tuple(args), dict(kwargs))
        value = node.meta.get("example_value")
        made.meta = {**node.meta, "val": None if is_transformed(value) else value}
        self._symbols.learn(made.meta["val"], made)
        return made

    def _recorded(self, node: Node, function: Callable[..., Any]) -> Any:
        """Write down the operators that a call consists of."""
        args, kwargs = self._rewritten((node.args, node.kwargs))
        found = None if self.regions.autocast else self._expansions.key(node.target, args, kwargs)
        known = self._expansions.find(found[0]) if found is not None else None
        operands = {n: n.meta.get("val") for n in self._operands(node)}
        self._recorder.begin(operands, _inherited(node))
        if known is not None and found is not None and "example_value" in node.meta:
            made = self.graph.call_function(known.target, *known.arguments(found[1]))
            self._recorder.bind(made, node.meta["example_value"])
            return self._structure(made.meta["val"])
        return self._traced(node, function, found)

    def _traced(self, node: Node, function: Callable[..., Any], found: tuple[Any, list[Node]] | None) -> Any:
        args, kwargs = self._rewritten((node.args, node.kwargs))
        values = map_arg((args, kwargs), lambda n: n.meta["val"])
        last = next(iter(reversed(self.graph.nodes)), None)
        try:
            with self._recorder:
                result = function(*values[0], **values[1])
        except UncapturableError:
            if not any(map(is_traceable_wrapper_subclass, tree_leaves(values))):
                raise
            self._erase_behind(last)
            with self.regions.spelled_out():
                return self._carried(node)
        recorded = self._recorder.recorded
        if recorded and self._recorder.is_handle_of(result, recorded[-1]):
            result = node.meta.get("example_value", result)
            self._recorder.bind(recorded[-1], result)
            if found is not None and len(recorded) == 1:
                self._expansions.learn(found[0], found[1], recorded[0])
        return self._structure(result)

    def _erase_behind(self, last: Node | None) -> None:
        """Forget what was written down of a call that looks inside of a tensor, as quantized weights do."""
        for made in reversed(self.graph.nodes):
            if made is last:
                return
            self.graph.erase_node(made)

    def _structure(self, result: Any) -> Any:
        """A result with nodes in place of tensors and symbolic numbers."""
        if isinstance(result, (list, tuple)):
            return [self._structure(part) for part in result]
        return self._recorder.node_of(result)


def _inherited(node: Node) -> dict[str, Any]:
    """What the operators of a call share with the call: where it stands in the model and in the source."""
    kept = ("nn_module_stack", "stack_trace", "source_fn_stack")
    return {key: node.meta[key] for key in kept if key in node.meta}
