"""LayerNorm becomes RMSNorm where the values it reads can be written without a mean.

    LN_eps(sum_k W_k a_k + b_k) = RMS_eps(sum_k (C W_k) a_k + C b_k),    C = I - 11'/d

with the same eps, weight and bias (Jiang et al. 2023, arXiv 2305.14858, section 3). Numerics
class: reassociated; the mean is removed from the weights instead of from the values.
"""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.centring import Decision
from normfuse.analysis.stream import Stream, norm_axis
from normfuse.ir.canonical import is_expressible, respell
from normfuse.ir.region import norms_in, region_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.centrings import settle_centrings
from normfuse.passes.decisions import carry_out, streams_of, weights_of
from normfuse.passes.evidence import Certificate
from normfuse.passes.policy import apply_policy
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.work import Work
from normfuse.report import Refusal, Site

__all__ = ["RECENTRE", "recentre"]


def recentre(work: Work) -> None:
    """Convert every LayerNorm that the policy allows; record a reason for each that stays."""
    _refuse_in_advance(work)
    found = _decided(work)
    placement, proofs = carry_out(RECENTRE, found, work)
    for stream, decision in found:
        settle_centrings(stream, decision, placement, work)
        for node, refusal in decision.refusals.items():
            work.sites[node].refuse(refusal, RECENTRE.name)
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
        apply_policy(decision, work, weights)
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
