"""Graphs as lists of steps, to be compared: what the rewritten graph computes, and what changed modules do.

Norms are compared by their descriptions, so a norm may be spelled in another way. Everything else has to be
the same operator on the same operands, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_map

from normfuse.ir.calls import CASTS, aten, bind, is_call
from normfuse.ir.location import described
from normfuse.ir.region import norm_of
from normfuse.ir.sizes import rank_of, tensor_of
from normfuse.ir.spec import NormSpec

__all__ = ["Outline", "Ref", "Step", "outline_of", "paired"]


@dataclass(frozen=True)
class Ref:
    """An operand: the number of a step, or the name of an input."""

    to: int | str


@dataclass(frozen=True)
class Step:
    """One operator, or one norm, with its operands in place of nodes; ``shown`` is for people."""

    what: Any
    operands: tuple[Any, ...]
    shown: str


@dataclass(frozen=True)
class Outline:
    """The steps of a graph, and what it returns."""

    steps: tuple[Step, ...]
    results: Any


def outline_of(nodes: Iterator[Node] | list[Node]) -> Outline:
    """The steps of a graph whose norms are lifted."""
    known: dict[Node, Ref] = {}
    steps: list[Step] = []
    results: Any = None

    def refer(value: Any) -> Any:
        return known[value] if isinstance(value, Node) else value

    for node in nodes:
        if node.op == "placeholder":
            known[node] = Ref(node.name)
        elif node.op == "output":
            results = _mapped(node.args[0], refer)
        elif not is_call(node, aten._assert_tensor_metadata.default):
            what, operands = _read(node)
            steps.append(Step(what, tuple(_mapped(operand, refer) for operand in operands), described(node)))
            known[node] = Ref(len(steps) - 1)
    return Outline(tuple(steps), results)


def _mapped(value: Any, change: Any) -> Any:
    return tree_map(change, value, is_leaf=lambda v: isinstance(v, Node))


def _read(node: Node) -> tuple[Any, list[Any]]:
    region = norm_of(node)
    if region is not None:
        held = region.operands(node)
        named = (held.source, held.eps, held.scale, held.shift, held.mean, held.variance, held.skip)
        return _plain(region.spec), list(named)
    if node.op == "get_attr":
        return str(node.target), []
    fake = tensor_of(node)
    if is_call(node, *CASTS) and fake is not None:
        return ("cast", fake.dtype, fake.device), [node.args[0]]
    if isinstance(node.target, torch._ops.OpOverload):
        bound = bind(node)
        if is_call(node, aten.mean.dim):
            rank = rank_of(node.args[0]) if isinstance(node.args[0], Node) else 0
            bound["dim"] = [d % rank for d in bound["dim"]] if bound["dim"] and rank else bound["dim"]
        return str(node.target), list(bound.values())
    return str(node.target), [*node.args, *sorted(node.kwargs.items())]


def _plain(spec: NormSpec) -> NormSpec:
    """Where nothing follows the core, it is rounded to the dtype of the result in any case."""
    return spec if spec.has_scale or spec.has_shift else replace(spec, scale_dtype=spec.out_dtype)


def paired(one: Outline, other: Outline) -> Mapping[str, str] | str:
    """For every input of ``other`` the input of ``one`` in its place; a sentence when there is none."""
    names: dict[str, str] = {}
    for ours, theirs in zip(one.steps, other.steps, strict=False):
        if ours.what != theirs.what or not _agree(ours.operands, theirs.operands, names):
            return _without_module(ours)
    if len(one.steps) != len(other.steps):
        longer = max(one.steps, other.steps, key=len)
        extra = longer[min(len(one.steps), len(other.steps))]
        return _without_module(extra)
    if not _agree(one.results, other.results, names):
        return "the rewritten graph returns something else than the modules do"
    return names


def _without_module(step: Step) -> str:
    is_mean = step.what == str(aten.mean.dim)
    shown = "an explicit centring" if is_mean else step.shown
    return f"{shown} of the rewritten graph has no module that would do it"


def _agree(ours: Any, theirs: Any, names: dict[str, str]) -> bool:
    if isinstance(ours, Ref) and isinstance(theirs, Ref):
        if isinstance(ours.to, str) and isinstance(theirs.to, str):
            return names.setdefault(theirs.to, ours.to) == ours.to
        return ours.to == theirs.to
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(
            _agree(a, b, names) for a, b in zip(ours, theirs, strict=True)
        )
    return type(ours) is type(theirs) and bool(ours == theirs)
