"""A norm that an RMSNorm alone reads goes into it.

    RMS_b(c N_a(x)) = sgn(c) g N_eps(x),    g = 1 / sqrt(1 + b / c^2),    eps = g^2 a b / c^2

for a LayerNorm or RMSNorm N without weight and bias. Where ``m`` is the mean square of what N divides, that
of its result is ``m / (m + a)``, and the outer norm divides by the root of ``(m (1 + b) + a b) / (m + a)``:
sums of positive numbers, in which nothing cancels. It saves a whole norm. What is centred once more stays, as
the outer norm takes away what rounding leaves of the mean. Numerics class: reassociated.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch.fx import Node

from normfuse.ir.calls import aten, is_call
from normfuse.ir.canonical import is_plain, respell
from normfuse.ir.dead_code import drop_assertions
from normfuse.ir.location import described
from normfuse.ir.readers import value_readers
from normfuse.ir.region import NormRegion, norm_of, norms_in, region_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.decisions import weights_of
from normfuse.passes.evidence import certificate
from normfuse.passes.idle import refuse_mixed_modes
from normfuse.passes.own_factor import refusal_behind, take_behind
from normfuse.passes.place import Placement
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.work import Work
from normfuse.report import Refusal

__all__ = ["FOLD_NESTED", "fold_nested"]

#: What reads the sizes of a value, which are those of what the norm reads, or states what is known of it.
_NO_READERS = (aten.sym_size.int, aten.sym_numel.default, aten._assert_tensor_metadata.default)


def fold_nested(work: Work) -> None:
    """Take norms into the norms that read them; record a reason for each that reads one as it is."""
    weights, placement = weights_of(work), Placement(work.program.gm.graph)
    for inner in [node for node, _ in norms_in(work.program.gm)]:
        region = region_of(inner)  # another one than at first, where it has taken a norm itself
        outer = [reader for reader in value_readers(inner) if _reads(reader, inner)]
        if not outer:
            continue
        refusal = _refuse_inner(inner, region, outer, work)
        for norm in outer:
            refusal = refusal or _refuse_outer(norm, inner, region.spec, work)
        for norm in outer:
            if refusal is not None:
                work.sites[norm].refuse(refusal, FOLD_NESTED.name)
                continue
            _take(inner, norm, region, work)
            if refusal_behind(norm, work.program, weights) is None:
                take_behind(norm, placement, work.program)
                weights.admit(placement.made)
        if refusal is None:
            proof = certificate(FOLD_NESTED, ([inner.name], [inner.name]), [], work)
            drop_assertions(inner)
            work.leave_out(inner, region.operands(inner).source).fold(FOLD_NESTED.name, proof)


def _reads(reader: Node, inner: Node) -> bool:
    region = norm_of(reader)
    return region is not None and region.operands(reader).source is inner


def _refuse_inner(inner: Node, region: NormRegion, outer: list[Node], work: Work) -> Refusal | None:
    spec = region.spec
    if spec.has_scale or spec.has_shift:
        message = f"{described(inner)}, which it reads, multiplies or shifts each channel by its own number"
        return Refusal("channel_gate", message, inner.name)
    if not is_plain(spec) or spec.post_factor == 0:
        return Refusal("unusual_form", f"{described(inner)}, which it reads, is no plain norm", inner.name)
    others = [user for user in inner.users if user not in outer and not is_call(user, *_NO_READERS)]
    if others:
        message = f"{described(others[0])} reads {described(inner)} too, which therefore stays"
        return Refusal("raw_reader", message, others[0].name)
    if not work.may(inner, FOLD_NESTED.name):
        return Refusal("raw_reader", f"{described(inner)}, which it reads, must stay as it is", inner.name)
    return None


def _refuse_outer(norm: Node, inner: Node, spec: NormSpec, work: Work) -> Refusal | None:
    region = region_of(norm)
    reads = region.spec
    if reads.centred:
        message = f"{described(norm)} takes away what rounding leaves of the mean of {described(inner)}"
        return Refusal("centred_twice", message, norm.name)
    if not is_plain(reads) or reads.has_shift:
        message = f"{described(norm)} is no plain RMSNorm, to which a number could go"
        return Refusal("unusual_form", message, norm.name)
    how = [(one.dims, one.sum_dtype, one.compute_dtype) for one in (reads, spec)]
    if how[0] != how[1]:
        message = f"{described(norm)} and {described(inner)} normalize other axes, or compute otherwise"
        return Refusal("unusual_form", message, norm.name)
    if list(norm.args).count(inner) != 1 or not work.may(norm, FOLD_NESTED.name):
        message = f"{described(norm)} needs the values of {described(inner)} as they are"
        return Refusal("raw_reader", message, norm.name)
    info = torch.finfo(reads.sum_dtype)
    if _joined(spec, reads)[1] * info.eps < info.tiny:  # squares below it would be lost beside it
        message = f"the eps of {described(norm)} and of the norm before it are too small to be multiplied"
        return Refusal("factor_range", message, norm.name)
    return None


def _joined(spec: NormSpec, reads: NormSpec) -> tuple[float, float]:
    """The factor and the eps of both as one."""
    assert spec.eps is not None
    assert reads.eps is not None
    beside = reads.eps / spec.post_factor**2
    return 1 / math.sqrt(1 + beside), spec.eps * beside / (1 + beside)


def _take(inner: Node, norm: Node, region: NormRegion, work: Work) -> None:
    """Let the outer norm read what the inner one reads, with a number behind it."""
    held = region_of(norm)
    spec, operands = region.spec, held.operands(norm)
    factor, eps = _joined(spec, held.spec)
    factor = math.copysign(factor, spec.post_factor) * held.spec.post_factor
    made = replace(held.spec, kind=spec.kind, eps=eps, post_factor=factor, source_dtype=spec.source_dtype)
    respell(norm, made, replace(operands, source=region.operands(inner).source))
    proof = certificate(FOLD_NESTED, ([inner.name], [inner.name]), norm.all_input_nodes[1:], work)
    work.sites[norm].fold(FOLD_NESTED.name, proof, left=made)


FOLD_NESTED = Rule(
    "fold_nested",
    Numerics.REASSOCIATED,
    "RMS_b(c N_a(x)) = sgn(c) g N_eps(x),  g = 1 / sqrt(1 + b / c^2),  eps = g^2 a b / c^2",
    "the norm of Zhang, Sennrich 2019, arXiv 1910.07467, applied twice",
    (
        "one direction: the outer norm reads the inner one's value along the same axes and centres nothing",
        "norms alone: nothing else reads the inner norm, which has no weight and no bias",
        "changed weights: the weight of the outer norm takes the number, in its own copy, or stays",
    ),
    run=fold_nested,
    waits=lambda site: False,
    idle=refuse_mixed_modes,
)
