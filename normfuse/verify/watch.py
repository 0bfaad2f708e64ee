"""Looks at a run of the pipeline and keeps what is needed to run the program before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import Node

from normfuse.folding import Folded
from normfuse.passes.work import Work
from normfuse.report import Refusal, Site
from normfuse.verify.probe import Probe

__all__ = ["Veto", "Watch"]

Veto = tuple[Refusal, dict[str, float]]
"""Why a site stays, and the errors that it had when it was changed."""


@dataclass
class Watch:
    """An observer of the pipeline that forbids the sites in ``vetoed``.

    ``weights`` says which inputs are some. ``errors`` are those of the outputs, by the inputs that they were
    measured on. ``after`` returns the outputs of the rewritten program and then the values of the sites whose
    numbers are in ``left``: those of the norms that are still there, and those that writers give now which
    took a norm into their weights.
    """

    vetoed: Mapping[int, Veto]
    work: Work | None = None
    before: Probe | None = None
    after: Probe | None = None
    folded: list[Tensor] = field(default_factory=list)
    weights: list[bool] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)

    def lifted(self, work: Work) -> None:
        self.work, self.before = work, Probe.of(work.program, list(work.sites))
        self.weights = [i.is_weight for i in work.program.inputs]
        self.sites = list(work.sites.values())
        for index, (refusal, errors) in self.vetoed.items():
            self.sites[index].revert(refusal)
            self.sites[index].errors = dict(errors)

    def rewritten(self, work: Work, folded: Sequence[Folded]) -> None:
        values = {node: i.value for node, i in work.program.weights.items()}
        self.folded = [one.recipe.compute([values[s] for s in one.sources]) for one in folded]
        numbers = {id(site): index for index, site in enumerate(self.sites)}
        nodes = {numbers[id(site)]: node for node, site in {**work.sites, **_written(work)}.items()}
        self.left = sorted(nodes)
        self.after = Probe.of(work.program, [nodes[index] for index in self.left])

    @property
    def changed(self) -> list[int]:
        """The sites that are not as they were, in execution order."""
        return [i for i, site in enumerate(self.sites) if site.action not in ("kept", "reverted")]

    @property
    def disregarded(self) -> list[int]:
        """The sites that were changed although that was forbidden."""
        return [i for i in self.vetoed if self.sites[i].action != "reverted"]

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
        return {i for i in alike if self.sites[i].action == "converted"}


def _written(work: Work) -> dict[Node, Site]:
    """Where the value of a folded norm still is, unless a centring may have changed it since."""
    moved = work.report.centrings or any(site.action == "converted" for site in work.report.sites)
    alive = set() if moved else set(work.program.gm.graph.nodes)
    return {node: site for node, site in work.written.items() if node in alive}
