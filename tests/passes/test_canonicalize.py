"""What canonical form drops and renames, and what it has to leave."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph, GraphModule, Node

from normfuse.ir.calls import aten
from normfuse.passes.canonicalize import canonicalize


def graph_of(
    target: object, *values: torch.Tensor, result: torch.Tensor, **options: object
) -> tuple[GraphModule, Node]:
    """One call, whose result is doubled."""
    graph = Graph()
    inputs = []
    for number, value in enumerate(values):
        inputs.append(graph.placeholder(f"input_{number}"))
        inputs[-1].meta["val"] = value
    node = graph.call_function(target, tuple(inputs), options)  # type: ignore[arg-type]
    node.meta["val"] = result
    twice = graph.call_function(aten.mul.Tensor, (node, 2.0))
    twice.meta["val"] = result
    graph.output(twice)
    return GraphModule({}, graph), node


@pytest.mark.parametrize("target", [aten.type_as.default, aten.to.other])
@pytest.mark.parametrize(("device", "renamed"), [("cpu", True), ("meta", False)])
def test_a_type_is_named_where_the_device_stays(target: object, device: str, renamed: bool) -> None:
    x, like = torch.ones(3), torch.ones(2, dtype=torch.float64, device=device)
    gm, node = graph_of(target, x, like, result=torch.ones(3, dtype=torch.float64, device=device))
    canonicalize(gm)
    assert (node.target is aten.to.dtype) is renamed


@pytest.mark.parametrize(("device", "dropped"), [("cpu", True), ("meta", False)])
def test_a_cast_to_another_device_stays(device: str, dropped: bool) -> None:
    x = torch.ones(3)
    gm, _ = graph_of(aten.type_as.default, x, torch.ones(2, device=device), result=x.to(device))
    assert canonicalize(gm) == dropped


X = torch.ones(3, 3)
FLOAT = {"dtype": torch.float32}

#: The call, its keyword arguments, what it gives, and whether that is its input handed on.
CALLS: dict[str, tuple[object, dict[str, object], torch.Tensor, bool]] = {
    "alias": (aten.alias.default, {}, X, True),
    "dropout in evaluation": (aten.dropout.default, {"p": 0.5, "train": False}, X, True),
    "dropout of nothing": (aten.dropout.default, {"p": 0.0, "train": True}, X, True),
    "dropout of channels in evaluation": (aten.feature_dropout.default, {"p": 0.5, "train": False}, X, True),
    "dropout": (aten.dropout.default, {"p": 0.5, "train": True}, X, False),
    "cast to the same type": (aten.to.dtype, FLOAT, X, True),
    "copy in the same type": (aten.to.dtype, {**FLOAT, "copy": True}, X, False),
    "cast to another type": (aten.to.dtype, {"dtype": torch.float64}, X.double(), False),
    "other places": (aten.to.dtype, {**FLOAT, "memory_format": torch.channels_last}, X, False),
    "another layout": (aten.to.dtype_layout, {"layout": torch.sparse_coo}, X.to_sparse(), False),
    "absolute values": (aten.abs.default, {}, X, False),
    "detached": (aten.detach_.default, {}, X, False),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_what_hands_its_input_on_is_dropped(name: str) -> None:
    target, options, result, dropped = CALLS[name]
    gm, _ = graph_of(target, X, result=result, **options)
    assert canonicalize(gm) == dropped


@pytest.mark.parametrize("source", [aten.lift_fresh_copy.default, aten.neg.default])
def test_a_constant_has_no_gradients_to_be_detached_from(source: object) -> None:
    gm, node = graph_of(source, X, result=X)
    with gm.graph.inserting_after(node):
        detached = gm.graph.call_function(aten.detach_.default, (node,))
    detached.meta["val"] = X
    node.replace_all_uses_with(detached, delete_user_cb=lambda user: user is not detached)
    assert canonicalize(gm) == (source is aten.lift_fresh_copy.default)


def test_what_is_returned_stays() -> None:
    gm, node = graph_of(aten.alias.default, X, result=X)
    gm.graph.output_node().args = (node,)
    assert canonicalize(gm) == 0
