"""Norms that are one function of one value are computed once, and all that read them read that one.

    f(N(x)) + g(N(x)) = f(y) + g(y),    y = N(x)

In inference that is what is left of two norms behind one value, as in the parallel blocks of GPT-NeoX, once
:mod:`normfuse.passes.fold_scale` has given the weight and bias of each to its own readers. Bits are those of
before, since both are the same operators on the same operands.

Norms that differ in what follows their core share the core, and each multiplies and adds behind it, where a
compiler puts that into the kernels that read it. As written, Inductor makes passes over the value for the
statistics of each in inference, and for the derivative of each in training. A program that is run operator
by operator keeps them: passes for weights and biases would cost more than is saved. Numerics class: rounding.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace

import torch
from torch.fx import Node

from normfuse.ir.calls import aten
from normfuse.ir.canonical import is_expressible, respell, scaled, shifted
from normfuse.ir.effects import is_returned
from normfuse.ir.emit import call
from normfuse.ir.location import described, module_path
from normfuse.ir.region import NormRegion, Operands, norms_in, region_of
from normfuse.ir.sizes import is_row_major, lies_alike, rank_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.bodies import are_alike
from normfuse.passes.evidence import Certificate, certificate
from normfuse.passes.idle import refuse_mixed_modes
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.views import equal_views
from normfuse.passes.work import Restored, Work
from normfuse.report import Refusal

__all__ = ["MERGE_NORMS", "merge_norms"]


def merge_norms(work: Work) -> None:
    """Let equal norms of one value be the first of them, and others share what is equal in them."""
    first: dict[Hashable, tuple[Node, NormRegion]] = {}
    views = {} if work.program.grad_enabled else equal_views(work.program.gm.graph)
    for node, region in norms_in(work.program.gm):
        if not work.may(node, MERGE_NORMS.name):
            continue
        read = tuple(views.get(operand, operand) for operand in region.operands(node).as_args())
        kept, spelling = first.setdefault((region.spec, read), (node, region))
        if kept is node:
            continue
        refusal = _refuse_spelling(kept, node, spelling, region) or _refuse_memory(kept, node, work)
        if refusal is None:
            _merge(kept, node, kept, work)
        else:
            work.sites[node].refuse(refusal, MERGE_NORMS.name)
    if not work.program.copies_tables and work.options.lower != "triton":
        _share_cores(work, views)


def _share_cores(work: Work, views: Mapping[Node, Node]) -> None:
    """One core for norms that differ in what follows it; for a compiler, which fuses that."""
    alike: dict[Hashable, list[Node]] = {}
    for node, region in norms_in(work.program.gm):
        core, operands = _core(region.spec), region.operands(node)
        if is_expressible(core) and work.may(node, MERGE_NORMS.name) and _is_apart(node, region.spec):
            source = views.get(operands.source, operands.source)
            alike.setdefault((core, source, operands.eps), []).append(node)
    for norms in alike.values():
        while norms:
            kept, *others = norms
            same = [norm for norm in others if lies_alike(norm, kept)]  # what is kept lies in one order
            if same:
                _share(kept, same, work)
            norms = [norm for norm in others if norm not in same]


def _core(spec: NormSpec) -> NormSpec:
    """What nothing has been rounded of yet."""
    wide = spec.statistics_dtype or spec.compute_dtype
    return replace(spec.core, scale_dtype=wide, out_dtype=wide)


def _is_apart(node: Node, spec: NormSpec) -> bool:
    """Whether something makes new memory behind the core, or nobody returns what lies in the core's."""
    core = _core(spec)
    is_cast = (spec.scale_dtype, spec.out_dtype) != (core.scale_dtype, core.out_dtype)
    return spec.has_affine or is_cast or not is_returned(node)


def _share(kept: Node, others: list[Node], work: Work) -> None:
    region, graph = region_of(kept), kept.graph
    spec, operands, result = region.spec, region.operands(kept), kept.meta["val"]
    readers = list(kept.users)
    respell(kept, _core(spec), replace(operands, scale=None, shift=None))
    kept.meta["val"] = _result(kept)
    with graph.inserting_before(kept.next):
        value = _behind(kept, spec, operands, result)
    for reader in readers:
        reader.replace_input_with(kept, value)
    before = work.restored.get(kept)
    if value is not kept:
        work.restored[kept] = Restored(value, rank_of(kept) - 1, () if before is None else before.maps)
    proof = _proof(kept, [kept, *others], operands, work)
    work.sites[kept].fold(MERGE_NORMS.name, proof, left=_core(spec))
    for norm in others:
        own = region_of(norm)
        with graph.inserting_before(norm):
            value = _behind(kept, own.spec, own.operands(norm), norm.meta["val"])
        _merge(kept, norm, value, work)


def _behind(core: Node, spec: NormSpec, operands: Operands, result: torch.Tensor) -> Node:
    """What one of the norms makes of the core."""
    graph = core.graph
    value = shifted(graph, spec, scaled(graph, spec, core, operands.scale), operands.shift)
    if is_row_major(result) and not is_row_major(value.meta["val"]):
        value = call(graph, aten.contiguous.default, value)
    return value


def _result(norm: Node) -> torch.Tensor:
    (returned,) = region_of(norm).body.output_node().all_input_nodes
    value: torch.Tensor = returned.meta["val"]
    return value


def _refuse_spelling(kept: Node, node: Node, one: NormRegion, other: NormRegion) -> Refusal | None:
    if are_alike(one.body, other.body):
        return None
    message = f"{described(node)} is written in other operators than {described(kept)}, which round otherwise"
    return Refusal("other_spelling", message, node.name, "write both norms alike")


def _refuse_memory(kept: Node, node: Node, work: Work) -> Refusal | None:
    """Why the values of two norms cannot lie in one memory, if so: who wrote to one would write to both.

    What is written to inside of the graph is no norm any more, so that only the caller is left.
    """
    seen = [one for one in (kept, node) if is_returned(one)]
    if not seen or (len(seen) == 1 and not work.program.grad_enabled):
        return None
    message = (
        f"{described(seen[-1])} is returned, and the caller may write to what would be another norm, too"
    )
    return Refusal("norm_is_output", message, seen[-1].name)


def _merge(kept: Node, norm: Node, value: Node, work: Work) -> None:
    """Let all that reads a norm read ``value``, which the other norm or something behind it gives."""
    proof = _proof(kept, [*norm.users], region_of(norm).operands(norm), work)
    work.sites[norm].merge(MERGE_NORMS.name, proof, module_path(kept) or kept.name)
    norm.replace_all_uses_with(value)
    work.merged(norm, value)
    norm.graph.erase_node(norm)


def _proof(kept: Node, readers: list[Node], operands: Operands, work: Work) -> Certificate:
    held = [node for node in (operands.scale, operands.shift) if node is not None]
    names = [reader.name for reader in readers]
    return certificate(MERGE_NORMS, ([kept.name], [kept.name], names), held, work)


MERGE_NORMS = Rule(
    "merge_norms",
    Numerics.ROUNDING,
    "f(N(x)) + g(N(x)) = f(y) + g(y),  y = N(x)",
    "Cocke 1970, Global common subexpression elimination, SIGPLAN Notices 5(7)",
    (
        "one function: the same statistics of the same value with the same eps, in the same operators",
        "computed before: the norm that stays runs first, and nothing writes to what both read",
        "one memory: at most one of them is returned to the caller, and none where gradients are recorded",
        "own weights: what a norm multiplies by and adds, by itself or behind what it shares, stays its own",
    ),
    run=merge_norms,
    waits=lambda site: False,
    idle=refuse_mixed_modes,
)
