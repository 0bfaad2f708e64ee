"""LayerNorm becomes RMSNorm where the values it reads can be written without a mean.

    LN_eps(sum_k W_k a_k + b_k) = RMS_eps(sum_k (C W_k) a_k + C b_k),    C = I - 11'/d

with the same eps, weight and bias (Jiang et al. 2023, arXiv 2305.14858, section 3). Numerics
class: reassociated; the mean is removed from the weights instead of from the values.
"""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis import Centre
from normfuse.analysis.centring import Decision, decide
from normfuse.analysis.stream import Stream, Value, explore, norm_axis
from normfuse.analysis.weights import WeightValues
from normfuse.ir.canonical import canonical_region
from normfuse.ir.effects import Effects
from normfuse.ir.region import norms_in
from normfuse.passes.place import Placement
from normfuse.passes.work import Work
from normfuse.report import Refusal

__all__ = ["NAME", "recentre"]

NAME = "recentre"


def recentre(work: Work) -> None:
    """Convert every LayerNorm that the policy allows; record a reason for each that stays."""
    gm = work.program.gm
    _refuse_in_advance(work)
    effects = Effects(gm.graph)
    weights = WeightValues(work.program, effects)
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    seen: set[Value] = set()
    found: list[tuple[Stream, Decision]] = []
    for node, site in work.sites.items():
        value = norm_axis(node)
        if value is None or value in seen or site.refusal is not None:
            continue
        stream = explore(value, weights, effects)
        seen.update(stream.members)
        found.append((stream, decide(stream, weights, order, work.options.policy == "convert")))
    placement = Placement(gm.graph)
    for stream, decision in found:
        _apply(work, stream, decision, placement)


def _refuse_in_advance(work: Work) -> None:
    for node, region in norms_in(work.program.gm):
        if region.spec.statistics != "input" or region.spec.kind == "weight_standardization":
            continue
        site = work.sites[node]
        if region.spec.kind == "rms_norm":
            site.refuse(Refusal("already_rms_norm", "an RMSNorm has no mean to remove", node.name))
        elif len(region.spec.dims) != 1:
            message = "the norm runs over several axes, so no one weight writes its mean"
            site.refuse(Refusal("several_axes", message, node.name))
        elif norm_axis(node) is None:
            message = "the norm's own weight or bias is made of the value that it normalizes"
            site.refuse(Refusal("raw_reader", message, node.name))


def _apply(work: Work, stream: Stream, decision: Decision, placement: Placement) -> None:
    for value in decision.centred:
        for operand, plan in decision.plans.get(value, ()):
            placement.substitute(value[0], operand, plan)
    if decision.cut is not None:
        _centre_explicitly(work, stream, decision, placement)
    for node in decision.converted:
        _convert(work, node)
    for node, refusal in decision.refusals.items():
        work.sites[node].refuse(refusal)


def _centre_explicitly(work: Work, stream: Stream, decision: Decision, placement: Placement) -> None:
    """One subtraction at the cut; where somebody wants the mean, only the centred readers see it."""
    assert decision.cut is not None
    node, axis = decision.cut
    readers: set[Node] | None = None
    if decision.cut in stream.raw:
        centred = {v for v, _ in decision.centred if (v, _) not in stream.raw}
        readers = {u for u in node.users if u in centred}
    placement.after(node, axis, Centre(), readers)
    work.report.centrings += 1


def _convert(work: Work, node: Node) -> None:
    gm = work.program.gm
    region = gm.get_submodule(str(node.target))
    spec = region.spec.as_kind("rms_norm")  # type: ignore[operator, union-attr]
    operands = region.operands(node)  # type: ignore[operator]
    gm.add_submodule(str(node.target), canonical_region(spec, operands, node.meta["val"]))
    work.sites[node].convert(spec)
