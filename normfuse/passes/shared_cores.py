"""Norms of one value that differ in what follows their core share the core, and each does the rest behind it.

    w * N(x) + b, v * N(x) + c    =>    w * y + b, v * y + c,    y = N(x)

A compiler puts what is behind the core into the kernels that read it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch.fx import Node

from normfuse.ir.canonical import is_expressible
from normfuse.ir.effects import is_returned
from normfuse.ir.location import module_path
from normfuse.ir.region import norms_in, region_of
from normfuse.ir.sizes import lies_alike, rank_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.cores import behind, unrounded, write_out
from normfuse.passes.evidence import Certificate, certificate
from normfuse.passes.rule import Rule
from normfuse.passes.work import Work

__all__ = ["give_value", "share_cores"]


def share_cores(work: Work, rule: Rule, views: Mapping[Node, Node]) -> None:
    """One core for all norms that have it in common; ``views`` are what is read under several names."""
    alike: dict[Hashable, list[Node]] = {}
    for node, region in norms_in(work.program.gm):
        core, operands = unrounded(region.spec.core), region.operands(node)
        if is_expressible(core) and work.may(node, rule.name):
            source = views.get(operands.source, operands.source)
            alike.setdefault((core, source, operands.eps), []).append(node)
    for norms in (_in_one_memory(norms, work.program.grad_enabled) for norms in alike.values()):
        while norms:
            kept, *others = norms
            same = [norm for norm in others if lies_alike(norm, kept)]  # what is kept lies in one order
            if same:
                _share(kept, same, work, rule)
            norms = [norm for norm in others if norm not in same]


def _in_one_memory(norms: list[Node], grad_enabled: bool) -> list[Node]:
    """The norms that may share a core: of those that are returned as it is one, and where gradients are none.

    Who gets two results may write to one of them, and a derivative may read what is returned.
    """
    cores = [norm for norm in norms if is_returned(norm) and _is_core(region_of(norm).spec)]
    return [norm for norm in norms if norm not in cores[0 if grad_enabled else 1 :]]


def _is_core(spec: NormSpec) -> bool:
    """Whether nothing follows the core that makes memory of its own."""
    core = unrounded(spec.core)
    return not spec.has_affine and (spec.scale_dtype, spec.out_dtype) == (core.scale_dtype, core.out_dtype)


def _share(kept: Node, others: list[Node], work: Work, rule: Rule) -> None:
    proof, core = _proof(kept, kept, [kept, *others], work, rule), region_of(kept).spec.core
    value = write_out(kept, core)
    if value is not kept:
        work.restore(kept, value, rank_of(kept) - 1)
    work.sites[kept].fold(rule.name, proof, left=unrounded(core))
    for norm in others:
        own = region_of(norm)
        with norm.graph.inserting_before(norm):
            value = behind(kept, own.spec, own.operands(norm), norm.meta["val"])
        give_value(norm, value, kept, work, rule)


def give_value(norm: Node, value: Node, kept: Node, work: Work, rule: Rule) -> None:
    """Let all that reads a norm read ``value``, which is the norm ``kept`` or something behind it."""
    proof = _proof(kept, norm, [*norm.users], work, rule)
    work.sites[norm].merge(rule.name, proof, module_path(kept) or kept.name)
    norm.replace_all_uses_with(value)
    work.merged(norm, value)
    norm.graph.erase_node(norm)


def _proof(kept: Node, norm: Node, readers: list[Node], work: Work, rule: Rule) -> Certificate:
    operands = region_of(norm).operands(norm)
    held = [node for node in (operands.scale, operands.shift) if node is not None]
    return certificate(rule, ([kept.name], [kept.name], [reader.name for reader in readers]), held, work)
