"""What canonical form drops and renames, and what it has to leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from normfuse.ir.calls import CASTS, aten, is_call
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


B = torch.linspace(-3, 5, 12).reshape(3, 4).bfloat16()


def written_later(x: Tensor) -> Tensor:
    y = x.float().bfloat16()
    x.view(-1)[::2].add_(1)
    return y.sin()


def result_written(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.float().bfloat16()
    y.view(-1)[::2].add_(1)
    return y.sin(), x.cos()


def wide_read(x: Tensor) -> Tensor:
    return x.float().bfloat16().sin() + x.float().sum()


def wide_read_too(x: Tensor) -> Tensor:
    wide = x.float()
    return wide.bfloat16().sin() + wide.sum()


def without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.float().bfloat16()
    return y.sin()


#: Functions of a value in bfloat16, and how many of their casts are left.
THERE_AND_BACK: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "float32": (lambda x: x.float().bfloat16().sin(), 0),
    "float64": (lambda x: x.double().to(torch.bfloat16).sin(), 0),
    "of a transpose": (lambda x: x.t().float().bfloat16().sin(), 0),
    "twice": (lambda x: x.float().bfloat16().float().bfloat16().sin(), 0),
    "by way of float16": (lambda x: x.half().bfloat16().sin(), 2),
    "narrower first": (lambda x: x.float().exp().bfloat16().float().sin(), 3),
    "on to another dtype": (lambda x: x.float().half().sin(), 2),
    "of a number": (lambda x: (x > 0).float().bool().sin(), 2),
    "a copy": (lambda x: x.float().to(torch.bfloat16, copy=True).sin(), 2),
    "in another order": (
        lambda x: x[None, None].float().to(torch.bfloat16, memory_format=torch.channels_last).sin(), 2
    ),
    "of what is expanded": (lambda x: x[:1].expand(5, 4).float().bfloat16().sin(), 2),
    "of a part": (lambda x: x[1:].float().bfloat16().sin(), 2),
    "returned": (lambda x: x.float().bfloat16(), 2),
    "a view returned": (lambda x: x.float().bfloat16().view(-1), 2),
    "wide read": (wide_read, 1),
    "wide read, too": (wide_read_too, 2),
    "written later": (written_later, 2),
    "result written": (result_written, 2),
    "without gradients": (without_gradients, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", THERE_AND_BACK)
def test_a_cast_that_undoes_one_that_lost_nothing_is_dropped(name: str) -> None:
    run, left = THERE_AND_BACK[name]
    gm = make_fx(run, pre_dispatch=True, tracing_mode="fake")(B.clone())
    canonicalize(gm)
    gm.recompile()
    given, own = B.clone(), B.clone()
    found, wanted = gm(given), run(own)
    one = (found, wanted) if isinstance(wanted, Tensor) else (found[0], wanted[0])
    assert torch.equal(*one)
    assert torch.equal(given, own)
    assert not torch._C._is_alias_of(one[0], given)
    assert sum(is_call(node, *CASTS) for node in gm.graph.nodes if node.users) == left


@pytest.mark.parametrize(("layout", "dropped"), [(torch.strided, True), (torch.sparse_coo, False)])
def test_a_cast_back_in_another_layout_stays(layout: torch.layout, dropped: bool) -> None:
    wide = X.double()
    gm, node = graph_of(aten.to.dtype, X, result=wide, dtype=torch.float64)
    with gm.graph.inserting_after(node):
        back = gm.graph.call_function(aten.to.dtype_layout, (node,), {**FLOAT, "layout": layout})
    back.meta["val"] = X if dropped else X.to_sparse()
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
    assert canonicalize(gm) == dropped
