"""LayerNorm becomes RMSNorm where the values it reads can be written without a mean.

    LN_eps(sum_k W_k a_k + b_k) = RMS_eps(sum_k (C W_k) a_k + C b_k),    C = I - 11'/d

with the same eps, weight and bias (Jiang et al. 2023, arXiv 2305.14858, section 3). Numerics
class: reassociated; the mean is removed from the weights instead of from the values.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from normfuse.analysis import Centre
from normfuse.analysis.centring import Decision
from normfuse.analysis.cost import training_traffic
from normfuse.analysis.savings import cost_of_centring
from normfuse.analysis.stream import Stream, norm_axis
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import bind
from normfuse.ir.canonical import is_expressible, respell
from normfuse.ir.region import norms_in, region_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.decisions import streams_of, substitutions, weights_of
from normfuse.passes.evidence import Certificate, evidence
from normfuse.passes.place import Placement
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.work import Work
from normfuse.report import Refusal, Site

__all__ = ["RECENTRE", "recentre"]

_ASK = 'ask for it with policy="convert"'


def recentre(work: Work) -> None:
    """Convert every LayerNorm that the policy allows; record a reason for each that stays."""
    _refuse_in_advance(work)
    found = _decided(work)
    proofs = {
        n: evidence(RECENTRE, n, stream, decision, work)
        for stream, decision in found
        for n in decision.converted
    }
    placement = Placement(work.program.gm.graph)
    placement.substitute([p for _, decision in found for p in substitutions(decision)])
    for stream, decision in found:
        _drop_centrings(stream, decision, placement)
        _apply(work, stream, decision, placement)
    for node, proof in proofs.items():
        _convert(work, node, proof)


def _decided(work: Work) -> list[tuple[Stream, Decision]]:
    """What the policy leaves of what could be done, stream by stream."""
    converts, weights = work.options.converts(work.program.grad_enabled), weights_of(work)
    settled = {
        node
        for node, site in work.sites.items()
        if site.refusal is not None or not work.may(node, RECENTRE.name)
    }
    found = list(streams_of(work, weights, settled, converts))
    for number, (stream, decision) in enumerate(found):
        work.streams |= {norm: number for norms in stream.norms.values() for norm in norms}
        if not converts:
            _name_the_policy(decision)
        if work.program.grad_enabled and not converts:
            _keep_what_does_not_pay(decision, weights)
    return found


def _refuse_in_advance(work: Work) -> None:
    for node, region in norms_in(work.program.gm):
        refusal = _no_candidate(node, region.spec)
        if refusal is not None:
            work.sites[node].refuse(refusal, RECENTRE.name)


def _no_candidate(node: Node, spec: NormSpec) -> Refusal | None:
    """Why a norm cannot become an RMSNorm whatever writes its input, if so."""
    if spec.kind == "rms_norm":
        return Refusal("already_rms_norm", "an RMSNorm has no mean to remove", node.name)
    if spec.kind == "crms_norm":
        return Refusal("already_crms_norm", "a CRMSNorm reads values whose mean is removed", node.name)
    if spec.kind == "l2_norm":
        return Refusal("no_mean", "an L2 norm has no mean to remove", node.name)
    if spec.kind != "layer_norm":
        return Refusal("no_rule", f"no rule converts {_a(spec.kind)} yet", node.name)
    if not is_expressible(spec.as_kind("rms_norm")):
        message = "the norm has groups, a divisor or an eps that a plain RMSNorm does not have"
        return Refusal("unusual_form", message, node.name)
    if len(spec.dims) != 1:
        message = "the norm runs over several axes, so no single weight writes its mean"
        return Refusal("several_axes", message, node.name)
    if norm_axis(node) is None:
        message = "the norm's own weight or bias is computed from the value that it normalizes"
        return Refusal("raw_reader", message, node.name)
    return None


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeio" else f"a {kind}"


def _name_the_policy(decision: Decision) -> None:
    """A table is not copied; what the policy leaves out is the centring behind it."""
    remedy = f"one centring after the lookup would do; {_ASK}"
    for node, refusal in decision.refusals.items():
        if refusal.code == "table_copy":
            decision.refusals[node] = replace(refusal, remedy=remedy)


def _keep_what_does_not_pay(decision: Decision, weights: WeightValues) -> None:
    traffic = training_traffic(decision, weights)
    if traffic.pays:
        return
    for node in decision.converted:
        decision.refusals[node] = Refusal(
            "does_not_pay",
            f"centring the weights at every training step would take {traffic.spent:.3g} {traffic.unit} "
            f"to save {traffic.saved:.3g}", node.name,
            _ASK,
        )  # fmt: skip
    decision.converted.clear()
    decision.centred.clear()
    decision.plans.clear()
    decision.cut = None


def _apply(work: Work, stream: Stream, decision: Decision, placement: Placement) -> None:
    if decision.cut is not None:
        _centre_explicitly(work, stream, decision, placement)
    for node, refusal in decision.refusals.items():
        work.sites[node].refuse(refusal, RECENTRE.name)


def _drop_centrings(stream: Stream, decision: Decision, placement: Placement) -> None:
    """Let what reads a centring that the model wrote read what it centred, which has no mean any more."""
    for value in decision.centred:
        if value in stream.centrings and value != decision.cut and value not in stream.raw:
            node = value[0]
            node.replace_all_uses_with(bind(node)["self"])
            placement.erase(node)


def _centre_explicitly(work: Work, stream: Stream, decision: Decision, placement: Placement) -> None:
    """One subtraction at the cut; where somebody wants the mean, only those that carry it on see it."""
    assert decision.cut is not None
    node, axis = decision.cut
    readers: set[Node] | None = None
    if decision.cut in stream.raw:
        written = [v for v in decision.centred if v not in stream.raw]
        readers = {v[0] for v in written if decision.cut in stream.operands.get(v, ())}
    placement.after(node, axis, Centre(), readers)
    work.report.centrings += 1
    work.report.spent += cost_of_centring(node)


def _convert(work: Work, node: Node, proof: Certificate) -> None:
    region = region_of(node)
    spec = region.spec.as_kind("rms_norm")
    respell(node, spec, region.operands(node))
    work.sites[node].convert(spec, RECENTRE.name, proof)


def _waits(site: Site) -> bool:
    return site.kind != "weight_standardization" and site.spec["statistics"] == "input"


RECENTRE = Rule(
    "recentre",
    Numerics.REASSOCIATED,
    "LN_eps(sum_k W_k a_k + b_k) = RMS_eps(sum_k (C W_k) a_k + C b_k),  C = I - 11'/d",
    "Jiang et al. 2023, arXiv 2305.14858, section 3",
    (
        "written by weights: every value of the stream that the norm reads is linear in weights, "
        "zero, or centred explicitly",
        "indifferent readers: nothing that reads such a value wants its mean",
        "changed weights: each takes the maps C and diag(s), in its own copy",
    ),
    run=recentre,
    waits=_waits,
    targets=("rms_norm", "crms_norm"),
)
