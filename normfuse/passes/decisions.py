"""What the rules decide upon, the weights of a graph and its streams, and how weights carry that out."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence

from torch.fx import Node

from normfuse.analysis.centring import CENTRE, Decision, decide
from normfuse.analysis.plan import Maps
from normfuse.analysis.stream import Stream, Value, explore, norm_axis
from normfuse.analysis.weights import WeightValues
from normfuse.folding.recipe import FOLD
from normfuse.ir.effects import Effects
from normfuse.passes.evidence import Certificate, evidence
from normfuse.passes.place import Placement, Substitution
from normfuse.passes.rule import Rule
from normfuse.passes.work import Work

__all__ = ["carry_out", "streams_of", "weights_of"]


def weights_of(work: Work) -> WeightValues:
    """The values that are made of weights alone, what earlier rules made of them included."""
    graph = work.program.gm.graph
    weights = WeightValues(work.program, Effects(graph))
    weights.admit(node for node in graph.nodes if FOLD in node.meta)
    return weights


def streams_of(
    work: Work,
    weights: WeightValues,
    settled: Container[Node],
    may_centre: bool,
    reads: Callable[[Node], Value | None] = norm_axis,
    maps: Maps = CENTRE,
) -> Iterator[tuple[Stream, Decision]]:
    """Every stream with a norm that is not ``settled``, and what ``maps`` would do to it.

    ``reads`` says of a norm which value it reads, where it does not mind the maps. Nothing is changed here.
    """
    graph = work.program.gm.graph
    effects, order = Effects(graph), {node: i for i, node in enumerate(graph.nodes)}
    centres, seen = maps == CENTRE and not weights.divided, set[Value]()
    for node in work.sites:
        value = reads(node)
        if value is None or value in seen or node in settled:
            continue
        stream = explore(value, weights, effects, reads, centres)
        seen.update(stream.members)
        yield stream, decide(stream, weights, order, may_centre, settled, maps)


def carry_out(
    rule: Rule, found: Sequence[tuple[Stream, Decision]], work: Work
) -> tuple[Placement, dict[Node, Certificate]]:
    """Let weights write what was decided; what each norm rests on is written down before."""
    proofs = {n: evidence(rule, n, stream, made, work) for stream, made in found for n in made.converted}
    placement = Placement(work.program.gm.graph)
    placement.substitute([one for _, made in found for one in _substitutions(made)])
    return placement, proofs


def _substitutions(decision: Decision) -> list[Substitution]:
    """What takes the place of the operands that weights write."""
    return [(v[0], operand, p) for v in decision.centred for operand, p in decision.plans.get(v, ())]
