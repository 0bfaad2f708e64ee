"""Norms written out in arithmetic: the completed cores of :mod:`normfuse.patterns.facts`."""

from __future__ import annotations

from torch.fx import Graph, Node

from normfuse.ir.calls import readers
from normfuse.ir.region import Operands
from normfuse.ir.sizes import shape_of, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.patterns import arithmetic
from normfuse.patterns.affine import weight_offset
from normfuse.patterns.algebra import count
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.constants import Constants
from normfuse.patterns.facts import Fact, Facts, Stage
from normfuse.patterns.flaws import flaw_of, refusal

__all__ = ["find_facts", "handwritten_norms"]


def find_facts(graph: Graph) -> Facts:
    """Facts by every transfer function of :mod:`normfuse.patterns.arithmetic`."""
    assert arithmetic.__all__
    return Facts(graph)


def handwritten_norms(facts: Facts) -> list[Candidate]:
    """Every norm whose core was completed, in execution order."""
    products = dict(facts.ending(Stage.FACTOR))
    factors = {fact.root: fact for fact in products.values() if fact.root is not None}
    alone = [(n, f) for n, f in factors.items() if all(user in products for user in readers(n))]
    found = (_candidate(node, fact) for node, fact in (*facts.ending(Stage.NORMED), *alone))
    return [candidate for candidate in found if candidate is not None]


def _candidate(node: Node, fact: Fact) -> Candidate | None:
    """None where a factor multiplies the norm and not its bias, which no description says."""
    source, result = tensor_of(fact.source), tensor_of(node)
    assert source is not None
    assert result is not None
    assert fact.compute_dtype is not None
    constants = Constants(fact.divisor, fact.eps, fact.eps_mode, fact.factor).canonical(count(fact))
    if fact.shift is not None and constants.post_factor != 1:
        return None
    eps = constants.eps
    is_factor = fact.stage is Stage.FACTOR
    spec = NormSpec(
        kind=_kind(fact, constants),
        dims=fact.dims,
        eps=eps if isinstance(eps, float) else None,
        source_dtype=source.dtype,
        compute_dtype=fact.compute_dtype,
        scale_dtype=result.dtype,
        out_dtype=result.dtype,
        has_scale=fact.scale is not None,
        has_shift=fact.shift is not None,
        eps_mode=constants.eps_mode,
        divisor=constants.whole_divisor,
        weight_offset=weight_offset(fact.scale),
        post_factor=constants.post_factor,
        factor_dtype=fact.factor_dtype,
        statistics_dtype=fact.statistics_dtype,
        returns="factor" if is_factor else "value",
        basis=fact.basis,
    )
    operands = Operands(fact.source, eps if isinstance(eps, Node) else None, fact.scale, fact.shift)
    flaw = fact.flaw or flaw_of(shape_of(fact.source), fact.dims)
    return Candidate(spec, node, operands, is_factor, refusal(flaw, node) if flaw else None, fact.stored)


def _kind(fact: Fact, constants: Constants) -> str:
    if fact.centred:
        return "layer_norm"
    return "crms_norm" if fact.basis else constants.kind
