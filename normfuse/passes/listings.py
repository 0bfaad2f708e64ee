"""The graph after each stage of the pipeline that changed it, as text."""

from __future__ import annotations

from dataclasses import dataclass, field

from normfuse.folding.recipe import FOLD
from normfuse.ir.listing import listing
from normfuse.passes.work import Work

__all__ = ["Listings"]


@dataclass
class Listings:
    """An observer; it prints as all that it saw, of one graph after the other.

    ``graphs`` are the texts of each graph by the names of the stages, without those that changed nothing.
    What the caller passes stands in the first text of a graph alone.
    """

    graphs: list[dict[str, str]] = field(default_factory=list)
    _last: str = ""

    def stage(self, name: str, work: Work) -> None:
        if name == "capture":
            self.graphs.append({})
        folded = [(one.node, one.sources) for one in work.folded]
        stages = self.graphs[-1]
        text = listing(work.program.gm.graph, work.program.inputs, folded, FOLD, short=True)
        if not stages:
            stages[name] = listing(work.program.gm.graph, work.program.inputs)
        elif text != self._last:
            stages[name] = text
        self._last = text

    def __str__(self) -> str:
        return "\n\n".join(
            f"{_heading(name, number if len(self.graphs) > 1 else 0)}\n{text}"
            for number, stages in enumerate(self.graphs, 1)
            for name, text in stages.items()
        )


def _heading(stage: str, number: int) -> str:
    return f"=== {f'graph {number}, ' if number else ''}after {stage}"
