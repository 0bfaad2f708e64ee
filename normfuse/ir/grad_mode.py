"""Stretches of a graph between switches of the gradient mode."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

__all__ = ["gradient_regions", "switches_gradients", "switches_gradients_on"]

_SWITCHES = (
    torch._C._set_grad_enabled,
    torch.autograd.grad_mode._enter_inference_mode,
    torch.autograd.grad_mode._exit_inference_mode,
)


def switches_gradients(graph: Graph) -> bool:
    """Whether a graph changes, anywhere, if gradients are recorded."""
    return any(node.target in _SWITCHES for node in graph.nodes if node.op == "call_function")


def switches_gradients_on(graph: Graph) -> bool:
    """Whether a graph may record gradients that its caller does not."""
    return any(n.target is torch._C._set_grad_enabled and n.args[0] is not False for n in graph.nodes)


def gradient_regions(graph: Graph) -> dict[Node, int]:
    """The number of switches before each node: operators that differ in it must not become one."""
    regions: dict[Node, int] = {}
    passed = 0
    for node in graph.nodes:
        passed += node.op == "call_function" and node.target in _SWITCHES
        regions[node] = passed
    return regions
