"""Which calls write, view, or matter by themselves: what every rule asks before it moves anything."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._higher_order_ops.flat_apply import flat_apply
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_flatten

from normfuse.ir.calls import aten
from normfuse.ir.effects import Effects, aliased_by, is_effectful


def written_in_place(x: Any) -> Any:
    """A function of nobody's that is named like one that writes."""
    return x


written_in_place.__name__ = "twice_"


def plain_function(x: Any) -> Any:
    return x


X = torch.ones(2, 3)


def call(target: Any, *arguments: Any, op: str = "call_function", value: Any = X) -> tuple[Graph, Node, Node]:
    """One call whose first argument is an input."""
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = X
    node = graph.create_node(op, target, (x, *arguments))
    node.meta["val"] = value
    graph.output(node)
    return graph, x, node


#: A call, and whether it writes to its input, may be a view of it, and matters where nobody reads it.
CALLS: dict[str, tuple[Callable[[], tuple[Graph, Node, Node]], bool, bool, bool]] = {
    "an operator that computes": (lambda: call(aten.mul.Tensor, 2.0), False, False, False),
    "a view": (lambda: call(aten.view.default, [3, 2]), False, True, False),
    "an update in place": (lambda: call(aten.add_.Tensor, 1), True, True, True),
    "what autograd forgets in place": (lambda: call(aten.detach_.default), False, True, True),
    "a cast that may do nothing": (lambda: call(aten.to.dtype, torch.float32), False, True, False),
    "a type like another's": (lambda: call(aten.type_as.default, X), False, True, False),
    "what may be its input, by a tag alone": (
        lambda: call(aten.atleast_2d.default), False, True, False,
    ),
    "a reshape": (lambda: call(aten.reshape.default, [3, 2]), False, True, False),
    "a batch norm in evaluation": (
        lambda: call(aten.batch_norm.default, None, None, None, None, False, 0.1, 1e-5, False), False, False,
        False,
    ),
    "one of several results": (lambda: call(operator.getitem, 0), False, True, False),
    "arithmetic on sizes": (lambda: call(operator.add, 1, value=3), False, False, False),
    "a root of a size": (lambda: call(math.sqrt, value=1.5), False, False, False),
    "a function of sizes": (lambda: call(torch.sym_max, 3, value=3), False, False, False),
    "a switch of a mode": (lambda: call(torch._C._set_grad_enabled, value=None), False, True, True),
    "a function of somebody's": (lambda: call(plain_function), False, True, True),
    "one of somebody's that writes": (lambda: call(written_in_place), True, True, True),
    "a method": (lambda: call("mul", 2.0, op="call_method"), False, True, False),
    "a method that writes": (lambda: call("mul_", 2.0, op="call_method"), True, True, True),
    "an operator of Python's that writes": (lambda: call("__iadd__", 1, op="call_method"), True, True, True),
    "entries that are set": (lambda: call("__setitem__", 0, 1.0, op="call_method"), True, True, True),
    "a method between underscores": (lambda: call("__add__", 1, op="call_method"), False, True, False),
    "an assertion": (
        lambda: call(aten._assert_tensor_metadata.default, [2, 3], value=None), False, False, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_what_a_call_does(name: str) -> None:
    build, writes, views, matters = CALLS[name]
    graph, x, node = build()
    assert (aliased_by(node) == [x]) is views, "views"
    effects = Effects(graph)
    assert effects.is_written(x) is writes, "writes"
    assert (effects.writers(x) == [node]) is writes, "writers"
    assert is_effectful(node) is matters, "matters"


@pytest.mark.parametrize(("training", "writes"), [(True, True), (False, False)])
def test_a_batch_norm_in_training_writes_to_its_statistics(training: bool, writes: bool) -> None:
    graph = Graph()
    x, mean, variance = (graph.placeholder(n) for n in ("x", "mean", "variance"))
    for node, value in ((x, X), (mean, torch.zeros(3)), (variance, torch.ones(3))):
        node.meta["val"] = value
    node = graph.call_function(
        aten.batch_norm.default, (x, None, None, mean, variance, training, 0.1, 1e-5, False)
    )
    node.meta["val"] = X.clone()
    graph.output(node)
    effects = Effects(graph)
    assert [effects.is_written(n) for n in (x, mean, variance, node)] == [False, writes, writes, False]


def test_views_are_written_with_what_they_show() -> None:
    """By what operators declare: these fake values share no memory."""
    graph = Graph()
    x = graph.placeholder("x")
    view = graph.call_function(aten.view.default, (x, [6]))
    parts = graph.call_function(aten.split.Tensor, (view, 3))
    part = graph.call_function(operator.getitem, (parts, 1))
    other = graph.call_function(aten.mul.Tensor, (x, 2.0))
    update = graph.call_function(aten.add_.Tensor, (part, 1))
    for node, value in (
        (x, X.clone()), (view, torch.ones(6)), (parts, (torch.ones(3), torch.ones(3))), (part, torch.ones(3)),
        (other, X.clone()), (update, torch.ones(3)),
    ):  # fmt: skip
        node.meta["val"] = value
    graph.output((other, update))
    effects = Effects(GraphModule({}, graph).graph)
    twins = dict(zip(("x", "view", "split", "getitem", "mul"), effects._memory, strict=False))
    written = {name: effects.is_written(node) for name, node in twins.items()}
    assert written == {"x": True, "view": True, "split": True, "getitem": True, "mul": False}


def test_an_operator_that_is_handed_something_else_than_a_graph_may_write() -> None:
    """As ``flat_apply`` is handed how its arguments are nested."""
    graph = Graph()
    x, held = graph.placeholder("x"), graph.get_attr("spec")
    x.meta["val"] = X
    node = graph.call_function(flat_apply, (held, held, x))
    node.meta["val"] = X
    graph.output(node)
    owner = torch.nn.Module()
    owner.spec = tree_flatten((X,))[1]
    copied = GraphModule(owner, graph).graph
    assert Effects(copied).is_written(next(iter(copied.nodes)))
