"""Norms whose statistics do not depend on the input: one scale and one shift per channel.

    y = (x - mean) / sqrt(variance + eps) * weight + bias               (Ioffe, Szegedy 2015, algorithm 2)
    y = (x - mean) / sqrt(variance + eps) * weight + bias + skip * x    (RepBN: Guo et al. 2024, eq. 6)

What is written out in arithmetic is found by :mod:`normfuse.patterns.stored_arithmetic`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.changed import changed
from normfuse.ir.dtypes import opmath
from normfuse.ir.location import described
from normfuse.ir.region import Operands
from normfuse.ir.sizes import same, shape_of, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.patterns.around import around
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.stored_arithmetic import spelled_norms
from normfuse.patterns.stored_growth import with_affine, with_cast, with_skip
from normfuse.patterns.stored_sums import with_sums
from normfuse.report import Refusal

__all__ = ["stored_norms"]


def stored_norms(graph: Graph, weights: Container[Node]) -> list[Candidate]:
    """Every norm with stored statistics, in execution order; ``weights`` are the values of the model."""
    native = [_READERS[n.target](n, weights) for n in graph.nodes if n.target in _READERS]
    found = [c for c in native if c is not None] + spelled_norms(graph, weights)
    order = {node: i for i, node in enumerate(graph.nodes)}
    growth, grown = _Growth(weights), list[Candidate]()
    for norm in sorted(found, key=lambda c: order[c.root]):
        if norm.root not in growth.inside:
            grown.append(growth.of(norm))
    return [norm for norm in grown if norm.root not in growth.inside]


@dataclass
class _Growth:
    """Norms with all that belongs to them: ``taken`` are moves, ``inside`` values within a norm."""

    weights: Container[Node]
    taken: set[Node] = field(default_factory=set)
    inside: set[Node] = field(default_factory=set)

    def of(self, norm: Candidate) -> Candidate:
        before = None
        while norm is not before:
            before = norm
            norm = with_skip(with_affine(norm, self.weights), self.weights)
            norm = with_cast(around(with_sums(norm, self.weights), self.taken))
        self.inside |= norm.interior() - {norm.root}
        return norm


def _batch_norm(node: Node, weights: Container[Node]) -> Candidate | None:
    bound = bind(node)
    return _named(_native("batch_norm", node, node, bound, bound["training"], weights), bound)


def _instance_norm(node: Node, weights: Container[Node]) -> Candidate | None:
    """With stored statistics, instance norm is batch norm; without them it is another norm."""
    bound = bind(node)
    if bound["use_input_stats"]:
        return None
    return _native("instance_norm", node, node, bound, False, weights)


def _decomposed(node: Node, weights: Container[Node]) -> Candidate | None:
    """The forms that return statistics as well: the result is the first of several values."""
    root, bound = _only_result(node), bind(node)
    training = bound.get("training", False)
    made = None if root is None else _native("batch_norm", node, root, bound, training, weights)
    return _named(made, bound)


def _decomposed_without_statistics(node: Node, weights: Container[Node]) -> Candidate | None:
    """The same by the statistics of the batch."""
    root, bound = _only_result(node), {**bind(node), "running_mean": None, "running_var": None}
    made = None if root is None else _native("batch_norm", node, root, bound, True, weights)
    return _named(made, bound)


def _named(norm: Candidate | None, bound: Mapping[str, Any]) -> Candidate | None:
    """Where all channels were laid into one row, what the batch's own statistics make is instance norm."""
    if norm is None or norm.spec.statistics != "input" or norm.spec.kind != "batch_norm":
        return norm
    if bound["running_mean"] is not None:
        return norm
    row = norm.operands.source
    if not is_call(row, aten.view.default, aten.reshape.default) or not same((shape_of(row) or (0,))[0], 1):
        return norm
    return changed(norm, spec=norm.spec.as_kind("instance_norm"), refusal=None)


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


_READERS: dict[object, Callable[[Node, Container[Node]], Candidate | None]] = {
    aten.batch_norm.default: _batch_norm,
    aten.instance_norm.default: _instance_norm,
    aten._native_batch_norm_legit_no_training.default: _decomposed,
    aten.native_batch_norm.default: _decomposed,
    aten._native_batch_norm_legit.no_stats: _decomposed_without_statistics,
}
