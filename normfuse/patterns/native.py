"""Norms that PyTorch spells with one operator.

    layer_norm: y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias      (Ba et al. 2016, eq. 4)
    rms_norm:   y = x / sqrt(mean(x**2) + eps) * weight                     (Zhang, Sennrich 2019, eq. 4)
    group_norm: layer_norm of each group of channels, over positions too    (Wu, He 2018, eq. 7)

All compute in float32 for half-precision inputs and round once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from normfuse.ir.calls import aten, bind
from normfuse.ir.changed import changed
from normfuse.ir.dtypes import opmath
from normfuse.ir.kinds import teach, teach_by
from normfuse.ir.region import Operands
from normfuse.ir.sizes import same, shape_of, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.patterns.affine import weight_offset
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.facts import Facts, Stage
from normfuse.patterns.flaws import flaw_of, refusal

__all__ = ["native_norms", "reader"]

Reader = Callable[[Node, Facts], Candidate | None]
_READERS: dict[object, Reader] = {}


def reader(*targets: object, kind: str = "") -> Callable[[Reader], Reader]:
    """Register what describes a call of an operator that is a whole norm.

    ``kind`` names a new kind of norm in advance, for ``expect``; without it, it is known once one was found.

    Raises:
        ValueError: for an operator that has a reader already.
    """

    def register(function: Reader) -> Reader:
        taken = [t for t in targets if t in _READERS]
        if taken:
            raise ValueError(f"{taken[0]} has a reader already: {_READERS[taken[0]].__name__}")
        _READERS.update(dict.fromkeys(targets, function))
        if kind:
            teach(kind)
        else:
            teach_by(function.__module__)
        return function

    return register


def native_norms(graph: Graph, facts: Facts) -> list[Candidate]:
    """Every native norm of a graph, in execution order."""
    calls = (n for n in graph.nodes if n.op == "call_function" and n.target in _READERS)
    found = ((n, _READERS[n.target](n, facts)) for n in calls)
    return [_refused_with_statistics(n, c) for n, c in found if c is not None]


def _refused_with_statistics(node: Node, norm: Candidate) -> Candidate:
    """No other form of a norm computes what else the operator returns, so that must not be read."""
    alone = isinstance(node.meta.get("val"), torch.Tensor) or len(node.users) == 1
    return norm if alone else changed(norm, refusal=norm.refusal or refusal("statistics_read", node))


@reader(aten.layer_norm.default, aten.native_layer_norm.default)
def layer_norm(node: Node, facts: Facts) -> Candidate | None:
    bound, root = bind(node), _result(node)
    return None if root is None else _native("layer_norm", root, bound, facts, bound["eps"])


@reader(aten.rms_norm.default, aten._fused_rms_norm.default)
def rms_norm(node: Node, facts: Facts) -> Candidate | None:
    bound, root = bind(node), _result(node)
    value = tensor_of(bound["input"])
    default = torch.finfo(opmath(value.dtype)).eps if value is not None and value.is_floating_point() else 0.0
    eps = default if bound["eps"] is None else bound["eps"]
    return None if root is None else _native("rms_norm", root, bound, facts, eps)


def _result(node: Node) -> Node | None:
    """The value itself; of a call that returns statistics as well, the first part."""
    if isinstance(node.meta.get("val"), torch.Tensor):
        return node
    return next(filter(is_call_of_part, node.users), None)


def is_call_of_part(node: Node) -> bool:
    """Whether a node takes the first of several results."""
    return node.target is operator.getitem and bool(node.args[1] == 0)


def _native(kind: str, root: Node, bound: dict[str, Any], facts: Facts, eps: Any) -> Candidate | None:
    fact = facts.at(bound["input"], Stage.SOURCE)
    value = tensor_of(bound["input"])
    if fact is None or value is None:
        return None
    begin = bound["input"] if fact.centred else fact.source  # a centring ahead of the norm is no part of it
    dims = tuple(range(-len(bound["normalized_shape"]), 0))
    weight, bias = bound["weight"], bound.get("bias")
    made = _described(kind, root, value, dims, eps, weight, bias)
    source = tensor_of(begin)
    if made is None or source is None:
        return None
    spec = changed(made.spec, source_dtype=source.dtype)
    flaw = flaw_of(shape_of(bound["input"]), dims)
    return changed(
        made,
        spec=spec,
        operands=changed(made.operands, source=begin),
        refusal=refusal(flaw, root) if flaw else None,
        stored=fact.stored,
    )


def _described(
    kind: str, root: Node, value: torch.Tensor, dims: tuple[int, ...], eps: Any, weight: Any, bias: Any
) -> Candidate | None:
    """The description that all native norms share; None where autocast chose the types."""
    result = tensor_of(root)
    if result is None or result.dtype != value.dtype or not value.is_floating_point():
        return None
    compute = opmath(value.dtype)
    spec = NormSpec(
        kind=kind,
        dims=dims,
        eps=None if isinstance(eps, Node) else float(eps),
        source_dtype=value.dtype,
        compute_dtype=compute,
        scale_dtype=value.dtype if weight is None else compute,
        out_dtype=value.dtype,
        has_scale=weight is not None,
        has_shift=bias is not None,
        weight_offset=weight_offset(weight),
    )
    operands = Operands(root, eps if isinstance(eps, Node) else None, weight, bias)
    return Candidate(spec, root, operands)


@reader(aten.group_norm.default, aten.native_group_norm.default)
def group_norm(node: Node, facts: Facts) -> Candidate | None:
    """With one channel in each group it is instance norm."""
    bound, root, value = bind(node), _result(node), tensor_of(node.args[0])
    groups = bound.get("num_groups", bound.get("group"))
    if value is None or root is None or not isinstance(groups, int) or value.dim() < 2:
        return None
    by_channel = same(value.shape[1], groups) and value.dim() > 2
    return _over_positions("instance_norm" if by_channel else "group_norm", root, bound, value, groups)


@reader(aten.instance_norm.default)
def instance_norm(node: Node, facts: Facts) -> Candidate | None:
    """With the statistics of its input; with stored ones it is batch norm."""
    bound, value = bind(node), tensor_of(node.args[0])
    if value is None or not bound["use_input_stats"] or value.dim() < 3:
        return None
    made = _over_positions("instance_norm", node, bound, value, 1)
    updates = made is not None and bound["running_mean"] is not None
    return changed(made, refusal=refusal("updates_statistics", node)) if made and updates else made


def _over_positions(
    kind: str, root: Node, bound: dict[str, Any], value: torch.Tensor, groups: int
) -> Candidate | None:
    """Weight and bias run along the channels, dimension 1."""
    first = 1 if kind == "group_norm" else 2
    dims = tuple(range(first - value.dim(), 0))
    made = _described(kind, root, value, dims, bound["eps"], bound["weight"], bound["bias"])
    if made is None:
        return None
    shared = groups if kind == "group_norm" else 1
    spec = changed(made.spec, affine_dims=(1 - value.dim(),), groups=shared)
    flaw = flaw_of(shape_of(bound["input"]), dims, symbolic=True)
    return changed(
        made,
        spec=spec,
        operands=changed(made.operands, source=bound["input"]),
        closed=True,
        refusal=refusal(flaw, root) if flaw else None,
    )
