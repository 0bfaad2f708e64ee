"""Norms whose statistics do not depend on the input: one scale and one shift per channel.

    y = (x - mean) / sqrt(variance + eps) * weight + bias               (Ioffe, Szegedy 2015, algorithm 2)
    y = (x - mean) / sqrt(variance + eps) * weight + bias + skip * x    (RepBN: Guo et al. 2024, eq. 6)

What is written out in arithmetic is found by :mod:`normfuse.patterns.stored_arithmetic`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container
from typing import Any

from torch.fx import Graph, Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.changed import changed
from normfuse.ir.dtypes import opmath
from normfuse.ir.location import described
from normfuse.ir.region import Operands
from normfuse.ir.sizes import same, same_shape, shape_of, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.patterns.around import around
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.stored_arithmetic import spelled_norms
from normfuse.report import Refusal

__all__ = ["stored_norms"]


def stored_norms(graph: Graph, weights: Container[Node]) -> list[Candidate]:
    """Every norm with stored statistics, in execution order; ``weights`` are the values of the model."""
    native = [_READERS[n.target](n, weights) for n in graph.nodes if n.target in _READERS]
    found = [c for c in native if c is not None] + spelled_norms(graph, weights)
    order = {node: i for i, node in enumerate(graph.nodes)}
    taken = set[Node]()
    grown = []
    for norm in sorted(found, key=lambda c: order[c.root]):
        inner = around(with_skip(norm, weights), taken)
        grown.append(around(with_skip(inner, weights), taken))
    return grown


def _batch_norm(node: Node, weights: Container[Node]) -> Candidate | None:
    bound = bind(node)
    return _native("batch_norm", node, node, bound, bound["training"], weights)


def _instance_norm(node: Node, weights: Container[Node]) -> Candidate | None:
    """With stored statistics, instance norm is batch norm; without them it is another norm."""
    bound = bind(node)
    if bound["use_input_stats"]:
        return None
    return _native("instance_norm", node, node, bound, False, weights)


def _decomposed(node: Node, weights: Container[Node]) -> Candidate | None:
    """The form that core ATen has: the result is the first of three values."""
    root = _only_result(node)
    return None if root is None else _native("batch_norm", node, root, bind(node), False, weights)


def _decomposed_without_statistics(node: Node, weights: Container[Node]) -> Candidate | None:
    """The same by the statistics of the batch; where all channels were laid into one row, instance norm."""
    root, value = _only_result(node), tensor_of(node.args[0])
    bound = {**bind(node), "running_mean": None, "running_var": None}
    made = None if root is None else _native("batch_norm", node, root, bound, True, weights)
    in_one_row = (
        value is not None
        and same(value.shape[0], 1)
        and is_call(bound["input"], aten.view.default, aten.reshape.default)
    )
    if made is None or made.spec.kind != "batch_norm" or not in_one_row:
        return made
    return changed(made, spec=made.spec.as_kind("instance_norm"), refusal=None)


def _only_result(node: Node) -> Node | None:
    """The first of several results, where nobody reads another one."""
    parts = [u for u in node.users if u.target is operator.getitem]
    alone = len(parts) == 1 and len(node.users) == 1 and parts[0].args[1] == 0
    return parts[0] if alone else None


def _native(
    kind: str, node: Node, root: Node, bound: dict[str, Any], training: bool, weights: Container[Node]
) -> Candidate | None:
    source, value = bound["input"], tensor_of(bound["input"])
    if value is None or not value.is_floating_point() or not isinstance(bound["eps"], (int, float)):
        return None
    mean, variance = bound["running_mean"], bound["running_var"]
    operands = Operands(source, None, bound["weight"], bound["bias"], mean, variance)
    held = [n for n in (mean, variance) if isinstance(n, Node)]
    stored = all(n in weights for n in held) and len(held) == 2
    compute = opmath(value.dtype)
    spec = NormSpec(
        kind=kind,
        dims=tuple(d - value.dim() for d in range(value.dim()) if d != 1),
        eps=float(bound["eps"]),
        source_dtype=value.dtype,
        compute_dtype=compute,
        scale_dtype=compute,
        out_dtype=value.dtype,
        has_scale=operands.scale is not None,
        has_shift=operands.shift is not None,
        statistics="stored" if stored else "computed",
        stored=("mean", "variance"),
    )
    if training or len(held) < 2:
        return _with_batch_statistics(Candidate(spec, root, operands), weights)
    return Candidate(spec, root, operands)


def _with_batch_statistics(norm: Candidate, weights: Container[Node]) -> Candidate:
    """Statistics of the batch; of a weight they are as constant as the weight is."""
    spec, operands = norm.spec, changed(norm.operands, mean=None, variance=None)
    spec = changed(spec, statistics="input", stored=())
    if operands.source in weights and norm.operands.mean is None:
        return Candidate(changed(spec, kind="weight_standardization"), norm.root, operands)
    refusal = Refusal(
        "batch_statistics",
        f"{described(norm.root)} normalizes by the statistics of its own batch",
        norm.root.name,
        "call .eval() on the norm, and keep track_running_stats=True",
    )
    return changed(norm, spec=spec, operands=operands, refusal=refusal)


def with_skip(norm: Candidate, weights: Container[Node]) -> Candidate:
    """``norm(x) + skip * x`` is one scale and one shift as well."""
    if len(norm.root.users) != 1 or norm.refusal is not None or norm.spec.statistics == "input":
        return norm
    reader = next(iter(norm.root.users))
    if not is_call(reader, aten.add.Tensor) or bind(reader)["alpha"] != 1:
        return norm
    other = reader.args[1] if reader.args[0] is norm.root else reader.args[0]
    skip = _factor(other, norm, weights)
    if skip is None:
        return norm
    operands = changed(norm.operands, skip=skip)
    return norm.grown(reader, operands, kind="rep_batch_norm", stored=(*norm.spec.stored, "skip"))


def _factor(product: object, norm: Candidate, weights: Container[Node]) -> Node | None:
    """The weight that multiplies the norm's own input, one number for all or one per channel."""
    source, result = tensor_of(norm.operands.source), tensor_of(product)
    if not isinstance(product, Node) or not is_call(product, aten.mul.Tensor) or len(product.users) != 1:
        return None
    left, right = product.args[:2]
    if norm.operands.source not in (left, right) or source is None or result is None:
        return None
    skip = right if left is norm.operands.source else left
    shape = shape_of(skip)
    if not isinstance(skip, Node) or skip not in weights or shape is None or result.dtype != source.dtype:
        return None
    if len(shape) > source.dim() or not same_shape(product, norm.operands.source):
        return None
    kept = [d for d in range(-len(shape), 0) if d not in norm.spec.dims]
    return skip if all(same(shape[d], 1) for d in range(-len(shape), 0) if d not in kept) else None


_READERS: dict[object, Callable[[Node, Container[Node]], Candidate | None]] = {
    aten.batch_norm.default: _batch_norm,
    aten.instance_norm.default: _instance_norm,
    aten._native_batch_norm_legit_no_training.default: _decomposed,
    aten._native_batch_norm_legit.no_stats: _decomposed_without_statistics,
}
