"""Norms written out in arithmetic: the completed cores of :mod:`normfuse.patterns.facts`."""

from __future__ import annotations

from torch.fx import Graph, Node

from normfuse.ir.region import Operands
from normfuse.ir.sizes import tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.patterns import arithmetic
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.facts import Fact, Facts

__all__ = ["find_facts", "handwritten_norms"]


def find_facts(graph: Graph) -> Facts:
    """Facts by every transfer function of :mod:`normfuse.patterns.arithmetic`."""
    assert arithmetic.__all__
    return Facts(graph)


def handwritten_norms(facts: Facts) -> list[Candidate]:
    """Every norm whose core was completed, in execution order."""
    return [_candidate(node, fact) for node, fact in facts.normed()]


def _candidate(node: Node, fact: Fact) -> Candidate:
    source, result = tensor_of(fact.source), tensor_of(node)
    assert source is not None
    assert result is not None
    assert fact.compute_dtype is not None
    eps = fact.eps
    spec = NormSpec(
        kind="layer_norm" if fact.centred else "rms_norm",
        dims=fact.dims,
        eps=eps if isinstance(eps, float) else None,
        source_dtype=source.dtype,
        compute_dtype=fact.compute_dtype,
        scale_dtype=result.dtype,
        out_dtype=result.dtype,
    )
    return Candidate(spec, node, Operands(fact.source, eps if isinstance(eps, Node) else None))
