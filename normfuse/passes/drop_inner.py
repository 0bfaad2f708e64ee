"""A norm that norms alone read, through weights, is left out: they divide by the length that it would change.

    N_b(W RMS_a(x)) = N_{b (m + a)}(W x) = (1 + e) N_b(W x),    m = mean(x^2)

Only the eps of the norms behind takes notice. Where P is the mean square that such a norm reads, and M the
one that it reads now, ``|e| <= b / (2 min(P, M))``: with ``r = m + a`` and ``P = M / r`` it divides by the
root of ``P + b / r`` in place of ``P + b``. Never without ``normfuse.allow="approximate"``. A weight of the
norm stays as a product. Numerics class: approximate.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from normfuse.analysis.row_scale import Rows, rows_of
from normfuse.ir.canonical import is_expressible, is_plain, scaled, shifted
from normfuse.ir.location import described
from normfuse.ir.region import NormRegion, norms_in, region_of
from normfuse.passes.decisions import weights_of
from normfuse.passes.evidence import certificate
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.work import Dropped, Work
from normfuse.report import Refusal

__all__ = ["DROP_INNER", "drop_inner"]


def drop_inner(work: Work) -> None:
    """Leave out each RMSNorm that norms alone read; record a reason for each that something else reads."""
    for node, region in reversed(norms_in(work.program.gm)):
        if region.spec.kind != "rms_norm" or not work.may(node, DROP_INNER.name):
            continue
        found = _refuse_form(node, region) or rows_of(node, weights_of(work), _may_end)
        if isinstance(found, Refusal):
            work.sites[node].refuse(found, DROP_INNER.name)
        else:
            _drop(node, region, found, work)


def _refuse_form(node: Node, region: NormRegion) -> Refusal | None:
    spec = region.spec
    bare = is_expressible(spec.core) and spec.dims == (-1,) and spec.post_factor > 0
    if bare and not spec.has_shift and spec.eps is not None and spec.affine_dims in ((), (-1,)):
        return None
    return Refusal("unusual_form", f"{described(node)} is no plain RMSNorm of the last axis", node.name)


def _may_end(norm: Node, value: Node) -> bool:
    """Whether a norm divides its input by a length of it, and reads it nowhere else."""
    region = region_of(norm)
    return is_plain(region.spec) and region.is_input(norm, value) and _eps(norm) > 0


def _drop(node: Node, region: NormRegion, found: Rows, work: Work) -> None:
    operands, graph = region.operands(node), node.graph
    ends = sorted({end.name for end in found.ends})
    proof = certificate(
        DROP_INNER, (ends, [one.name for one in found.path], [node.name]), node.all_input_nodes[1:], work
    )
    largest = max(_eps(end) for end in found.ends)
    proof["bound"] = {"relative change at most": f"{largest:g} / (2 min(P, M))", "eps": largest}
    with graph.inserting_before(node.next):
        spec = replace(region.spec, post_factor=1.0)
        value = shifted(graph, spec, scaled(graph, spec, operands.source, operands.scale), None)
    path = tuple(one.name for one in found.path)
    work.dropped.append(Dropped(node.name, value.name, path, tuple(ends)))
    work.leave_out(node, value).fold(DROP_INNER.name, proof)


def _eps(norm: Node) -> float:
    region = region_of(norm)
    assert region.spec.eps is not None
    return region.spec.eps


def _not_allowed(work: Work) -> Refusal | None:
    if work.options.allow != "approximate":
        return Refusal("not_asked", "it changes results, and normfuse.allow names exact rules alone")
    if work.program.grad_enabled:
        return Refusal("trains", "gradients are recorded, and the bound is one of values alone")
    return None


DROP_INNER = Rule(
    "drop_inner",
    Numerics.APPROXIMATE,
    "N_b(W RMS_a(x)) = N_{b (m + a)}(W x) = (1 + e) N_b(W x),  -t <= e <= t = b / (2 min(P, M))",
    "the invariance of Ba et al. 2016, arXiv 1607.06450, section 5.1",
    (
        "norms alone: each reader of its rows is, in the end, a norm of them with eps inside of its root",
        "linear on the way: weights multiply each row by itself, and nothing is added",
        "asked for: by allow, since the eps of these norms meets other lengths, and values another range",
        "weights: none changes, and one that multiplies the norm goes on multiplying",
    ),
    run=drop_inner,
    waits=lambda site: False,
    idle=_not_allowed,
)
