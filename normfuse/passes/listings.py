"""The graph after each stage of the pipeline that changed it, as text."""

from __future__ import annotations

from dataclasses import dataclass, field

from normfuse.folding.recipe import FOLD
from normfuse.ir.listing import input_lines, listing
from normfuse.passes.work import Work

__all__ = ["Listings"]


@dataclass
class Listings:
    """An observer; it prints as all that it saw, of one graph after the other.

    ``graphs`` are the texts of each graph by the names of the stages, without those that changed nothing, and
    ``inputs`` what the caller passes to it, which stands in none of these.
    """

    graphs: list[dict[str, str]] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    _last: str = ""

    def stage(self, name: str, work: Work) -> None:
        graph, inputs = work.program.gm.graph, work.program.inputs
        if name == "capture":
            self.graphs.append({})
            self.inputs.append(input_lines(inputs))
        text = listing(graph, inputs, [(one.node, one.sources) for one in work.folded], FOLD)
        if not self.graphs[-1] or text != self._last:
            self.graphs[-1][name] = self._last = text

    def around(self, stage: str) -> tuple[str, str]:
        """The last graph before a stage that changed it, and as it was afterwards."""
        texts = self.graphs[-1]
        place = list(texts).index(stage)
        return list(texts.values())[place - 1], texts[stage]

    def __str__(self) -> str:
        parts: list[str] = []
        for number, (inputs, stages) in enumerate(zip(self.inputs, self.graphs, strict=True), 1):
            of = f" of graph {number}" if len(self.graphs) > 1 else ""
            parts.append(f"=== inputs{of}\n{inputs}")
            parts += [f"=== after {name}{of}\n{text}" for name, text in stages.items()]
        return "\n\n".join(parts)
