"""One way to run a norm: for which it is there, and how it is written into a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from normfuse.ir.region import NormRegion
from normfuse.ir.spec import NormSpec
from normfuse.lowering.tensors import Tensors

__all__ = ["Provider", "Replaced", "alike", "part"]

Replaced = Mapping[Node, Node]


@dataclass(frozen=True)
class Provider:
    """Attributes:
    name: what it is called where it is measured beside others.
    runs: what ``site.lowering`` begins with.
    supports: why it does not run a norm with these tensors on this device; empty where it does.
    write: puts it in the place of a norm that it supports; returns what has the values of the nodes that are
        gone. The norm is not among them where nothing has its value any more.
    """

    name: str
    runs: str
    supports: Callable[[NormSpec, Tensors, torch.device], str]
    write: Callable[[GraphModule, Node, NormRegion], Replaced]


def alike(graph: Graph, before: set[Node], node: Node) -> None:
    """Tell of all nodes that are new since ``before`` that they come from where ``node`` comes from."""
    kept = {key: value for key, value in node.meta.items() if key in ("nn_module_stack", "stack_trace")}
    for new in graph.nodes:
        if new not in before:
            new.meta.update(kept)


def part(graph: Graph, made: Node, index: int) -> Node:
    """One of the results of an operator that has several."""
    found = graph.call_function(operator.getitem, (made, index))
    found.meta["val"] = made.meta["val"][index]
    return found
