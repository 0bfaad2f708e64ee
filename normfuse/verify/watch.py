"""Looks at a run of the pipeline and keeps what is needed to run the program before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import Node

from normfuse.folding import Folded
from normfuse.lowering.choose import LOWER
from normfuse.passes.work import Restored, Work
from normfuse.report import Refusal, Site
from normfuse.verify.probe import Probe

__all__ = ["Pair", "Veto", "Watch"]

Pair = tuple[int, str]
"""The number of a site, and a rule that changed it or must not."""

Veto = tuple[Refusal, dict[str, float]]
"""Why a rule is kept from a site, and the errors that the site had when it was changed."""


@dataclass
class Watch:
    """An observer of the pipeline that forbids what is in ``vetoed``.

    ``weights`` says which inputs are some. ``errors`` are those of the outputs, by the inputs that they were
    measured on. ``after`` returns the outputs of the rewritten program and then the values of the sites whose
    numbers are in ``left``: those of the norms that are still there, and those that writers give now which
    took a norm into their weights.
    """

    vetoed: Mapping[Pair, Veto]
    work: Work | None = None
    before: Probe | None = None
    after: Probe | None = None
    folded: list[Tensor] = field(default_factory=list)
    weights: list[bool] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)

    def stage(self, name: str, work: Work) -> None:
        if name == "lift":
            self._lifted(work)
        elif name == "lower":
            self._rewritten(work, work.folded)

    def _lifted(self, work: Work) -> None:
        self.work, self.before = work, Probe.of(work.program, list(work.sites))
        self.weights = [i.is_weight for i in work.program.inputs]
        self.sites = list(work.sites.values())
        for index, rule in self.vetoed:
            work.forbid(self.sites[index], rule)

    def _rewritten(self, work: Work, folded: Sequence[Folded]) -> None:
        self._tell_vetoes()
        values = {node: i.value for node, i in work.program.weights.items()}
        self.folded = [one.recipe.compute([values[s] for s in one.sources]) for one in folded]
        numbers = {id(site): index for index, site in enumerate(self.sites)}
        places = {numbers[id(site)]: (node, how) for site, node, how in _values_of(work)}
        self.left = sorted(places)
        with _whole(work, [places[i] for i in self.left]) as whole:
            self.after = Probe.of(work.program, whole)

    @property
    def changed(self) -> list[int]:
        """The sites that are not as they were, in execution order."""
        return [i for i, site in enumerate(self.sites) if _done(site)]

    @property
    def pairs(self) -> list[Pair]:
        """What was done, in execution order of the sites, for each in the order of the rules."""
        return [(i, rule) for i, site in enumerate(self.sites) for rule in _done(site)]

    @property
    def disregarded(self) -> list[Pair]:
        """What was done although it was forbidden."""
        return [pair for pair in self.pairs if pair in self.vetoed]

    def last(self, index: int) -> Pair:
        """The last that was done to a changed site."""
        return index, _done(self.sites[index])[-1]

    def gave_up(self, index: int) -> bool:
        """Whether nothing is left of what was done to a site, whose errors are those of that time."""
        return index >= 0 and self.sites[index].action == "reverted"

    def _tell_vetoes(self) -> None:
        for (index, rule), (refusal, errors) in self.vetoed.items():
            site = self.sites[index]
            site.refusals[rule] = refusal
            if rule == LOWER:
                site.lowering = f"inductor: {refusal.message}"
            elif not site.rewrites:
                site.revert(refusal)
                site.errors = dict(errors)

    def group(self, index: int) -> set[int]:
        """The changed sites of the same stream."""
        assert self.work is not None
        streams = {
            i: self.work.streams[node]
            for node, site in self.work.sites.items()
            for i, one in enumerate(self.sites)
            if one is site and node in self.work.streams
        }
        alike = {i for i, stream in streams.items() if stream == streams.get(index)}
        return {i for i in alike if self.sites[i].rewrites}


def _values_of(work: Work) -> Iterator[tuple[Site, Node, Restored | None]]:
    """The norms whose value the program has still, where it is, and how it comes back from there."""
    now, alive = work.lowered, set(work.program.gm.graph.nodes)
    left = ((site, node, work.restored.get(node)) for node, site in work.sites.items())
    written = ((site, node, None) for node, site in _written(work).items())
    for site, node, how in (*left, *written, *work.same):
        value = node if how is None else how.value
        held = now.get(value, value)
        if held not in alive or (how is not None and (how.is_blurred or _is_gone(how, work))):
            continue
        yield site, held, how


def _done(site: Site) -> list[str]:
    """What was done to a norm, in order: rules, and then that something else than Inductor runs it."""
    return [*site.rules, *([LOWER] if site.is_lowered else [])]


@contextmanager
def _whole(work: Work, places: Sequence[tuple[Node, Restored | None]]) -> Iterator[list[Node]]:
    """For each norm its value; for a while there are such of norms of which readers took a part."""
    graph, made = work.program.gm.graph, list[Node]()
    known = set(graph.nodes)
    for value, how in places:
        if how is not None:
            # A weight may be computed after the value that it scales.
            last = max([value, *(source for one in how.maps for source in one.sources)])
            with graph.inserting_before(last.next):
                for one in how.maps:
                    value = one.emit(graph, value, how.axis)
        made.append(value)
    yield made
    for node in reversed([n for n in graph.nodes if n not in known]):
        graph.erase_node(node)


def _is_gone(how: Restored, work: Work) -> bool:
    """Whether a weight that the graph computed was folded for good; readers are judged by what they give."""
    alive = set(work.program.gm.graph.nodes)
    return any(source not in alive for one in how.maps for source in one.sources)


def _written(work: Work) -> dict[Node, Site]:
    """Where the value of a folded norm still is, unless a centring may have changed it since."""
    moved = work.report.centrings or any(site.action == "converted" for site in work.report.sites)
    alive = set() if moved else set(work.program.gm.graph.nodes)
    return {node: site for node, site in work.written.items() if work.lowered.get(node, node) in alive}
