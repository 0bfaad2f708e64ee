"""What approximate rules did, judged by the bound that they state and not by the budget of exact ones.

    N_b(W RMS_a(x)) => N_b(W x),    relative change <= b / (2 min(P, M))

The program with these rules alone is made first. In float64 each norm behind one that was left out is run
both ways on the same ``x``, and may move by its bound. Exact rules are judged against that program then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from normfuse.errors import VerificationError
from normfuse.ir.calls import aten
from normfuse.ir.emit import call
from normfuse.ir.program import Program
from normfuse.ir.region import NormRegion, norm_of
from normfuse.lowering.inline import inline_all
from normfuse.options import Options
from normfuse.passes.catalogue import RULES
from normfuse.passes.pipeline import run_pipeline
from normfuse.passes.rule import Numerics
from normfuse.passes.work import Dropped, Work
from normfuse.report import Report, Site
from normfuse.verify.input_sets import InputSet
from normfuse.verify.judge import DOUBLE_BOUND
from normfuse.verify.oracle import run_wide
from normfuse.verify.widen import widen

__all__ = ["Approximated", "approximated"]

_RULES = tuple(rule.name for rule in RULES if rule.numerics is Numerics.APPROXIMATE)


@dataclass(frozen=True)
class Approximated:
    """``program`` with approximate rules alone; ``exact`` are the options that are left to apply."""

    program: Program
    exact: Options
    report: Report
    _pairs: GraphModule
    _eps: tuple[float, ...]
    _dims: tuple[tuple[int, ...], ...]
    _centred: tuple[bool, ...]

    def check(self, sets: Sequence[InputSet], progress: Callable[[str], None] = lambda text: None) -> None:
        """Run each norm behind one that was left out both ways; certificates get the largest change.

        Raises:
            VerificationError: when a value moved by more than its bound, or has no float64 oracle.
        """
        worst = 0.0
        for given in sets if self._eps else ():
            progress(f"approximate rules, on {given.name} inputs")
            values = run_wide(self._pairs, given.values)
            for index in range(len(self._eps)):
                worst = max(worst, self._moved(index, values[5 * index : 5 * index + 5], given.name))
        for site in self.dropped:
            site.rewrites[-1].certificate["bound"]["found at most"] = worst

    @property
    def dropped(self) -> list[Site]:
        """The norms that were left out."""
        return [site for site in self.report.sites if set(_RULES) & set(site.rules)]

    def told_in(self, report: Report) -> None:
        """Put the norms that were left out at their places among those of a report on the rest."""
        gone = {id(site) for site in self.dropped}
        places = [i for i, site in enumerate(self.report.sites) if id(site) not in gone]
        if len(places) != len(report.sites):
            places = [len(gone) + i for i in range(len(report.sites))]
        rest, left_out = dict(zip(places, report.sites, strict=True)), iter(self.dropped)
        count = len(gone) + len(rest)
        report.sites = [rest[i] if i in rest else next(left_out) for i in range(count)]
        report.streams = [[part.placed(places.__getitem__) for part in parts] for parts in report.streams]
        report.notes += [note for note in self.report.notes if note not in report.notes]

    def _moved(self, index: int, values: Sequence[Any], name: str) -> float:
        """How far a norm moved, relatively, on rows whose change is above rounding."""
        before, after, read, reads, shift = values
        dims = self._dims[index]
        least = torch.minimum(*(self._mean_square(index, one) for one in (read, reads)))
        core = before - shift
        bound = self._eps[index] / (2 * least)
        rounding = DOUBLE_BOUND * (core.abs().amax(dims, keepdim=True) + shift.abs().max())
        change = (after - before).abs()
        known = before.isfinite() & after.isfinite()
        if bool((change > bound * core.abs() + rounding)[known].any()):
            raise VerificationError(
                f"on {name} inputs a norm moved by more than the bound of the approximate rule before it"
            )
        size = core.abs().clamp(min=torch.finfo(core.dtype).tiny)
        return (
            float(torch.where(known & (change > rounding), change / size, 0.0).amax())
            if known.numel()
            else 0.0
        )

    def _mean_square(self, index: int, value: Tensor) -> Tensor:
        dims = self._dims[index]
        centred = value - value.mean(dims, keepdim=True) if self._centred[index] else value
        return centred.square().mean(dims, keepdim=True)


def approximated(program: Program, options: Options) -> Approximated | None:
    """None where nothing approximate is allowed, or done."""
    if options.allow == "exact":
        return None
    watch, made = _Watch(), program.copied()
    rules = tuple(rule for rule in _RULES if options.runs(rule))
    alone = replace(options, only=rules, skip=(), rotation=None, target="layer_norm", crms_basis=None)
    report, folded = run_pipeline(made, alone, watch)
    assert not folded
    if not watch.dropped:
        return None
    assert watch.pairs is not None
    exact = replace(options, allow="exact")
    specs = [norm.spec for norm in watch.ends]
    eps = tuple(spec.eps or 0.0 for spec in specs)
    pairs = widen(watch.pairs)
    dims, centred = tuple(spec.dims for spec in specs), tuple(spec.centred for spec in specs)
    return Approximated(made, exact, report, pairs, eps, dims, centred)


@dataclass
class _Watch:
    """Keeps the graph after the approximate rules, with what they left out beside what stands there now."""

    dropped: list[Dropped] = field(default_factory=list)
    lifted: Program | None = None
    pairs: GraphModule | None = None
    ends: list[NormRegion] = field(default_factory=list)

    def stage(self, name: str, work: Work) -> None:
        if name == "lift":
            self.lifted = work.program.copied()
        elif name == _RULES[-1]:
            self.dropped = list(work.dropped)
            self.pairs = self._both_ways(work)

    def _both_ways(self, work: Work) -> GraphModule:
        assert self.lifted is not None
        copy = work.program.copied()
        beside = _Beside(self.lifted, copy, {drop.norm: drop.value for drop in self.dropped})
        results = [one for drop in self.dropped for one in beside.ends_of(drop, self.ends)]
        copy.gm.graph.output_node().args = (tuple(results),)
        inline_all(copy.gm)
        return copy.gm


class _Beside:
    """Puts norms that were left out back beside what stands for them, each with its own way to its end."""

    def __init__(self, lifted: Program, program: Program, left_out: Mapping[str, str]) -> None:
        self._old = {node.name: node for node in lifted.gm.graph.nodes}
        self._gm, self._left_out = program.gm, left_out
        self._now: dict[str, Node] = {node.name: node for node in program.gm.graph.nodes}

    def ends_of(self, drop: Dropped, ends: list[NormRegion]) -> Iterator[Node]:
        """For each norm behind: what it gave, gives, read and reads, and what it adds."""
        norm = self._old[drop.norm]
        region = norm_of(norm)
        assert region is not None
        self._gm.add_submodule(str(norm.target), region)
        made = {self._standing(drop.value): self._again(norm, {})}
        for name in drop.path:
            made[self._now[name]] = self._again(self._now[name], made)
        for end in (self._now[name] for name in drop.ends):
            behind = norm_of(end)
            assert behind is not None
            ends.append(behind)
            operands, before = behind.operands(end), self._again(end, made)
            shift = operands.shift
            if shift is None:
                with self._gm.graph.inserting_before(self._gm.graph.output_node()):
                    shift = call(self._gm.graph, aten.zeros_like.default, end)
            yield from (before, end, behind.operands(before).source, operands.source, shift)

    def _standing(self, name: str) -> Node:
        """What stands for a value now, where several norms in a row were left out."""
        while name in self._left_out:
            name = self._left_out[name]
        return self._now[name]

    def _again(self, node: Node, made: Mapping[Node, Node]) -> Node:
        def there(operand: Node) -> Node:
            found = operand if operand in made else self._standing(operand.name)
            return made.get(found, found)

        graph: Graph = self._gm.graph
        with graph.inserting_before(graph.output_node()):
            again: Node = graph.node_copy(node, there)
        return again
