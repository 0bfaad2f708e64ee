"""Score the recogniser on one captured graph: what is there, lifted, missed, or described wrongly."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from bench.corpus.formula import describes
from bench.corpus.truth import native_norms, roots
from normfuse.ir.location import module_path, source_line
from normfuse.ir.program import Program
from normfuse.ir.region import norms_in
from normfuse.options import Options
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.functionalize import functionalize
from normfuse.passes.lift import lift
from normfuse.passes.work import Work

__all__ = ["Score", "judge"]


@dataclass
class Score:
    """One graph: norms present, lifted and recorded as refused; what was missed or wrong, by name."""

    present: int = 0
    lifted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    silent_modules: list[str] = field(default_factory=list)
    bitwise: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def add(self, other: Score) -> None:
        """A further graph of the same model."""
        self.present += other.present
        self.lifted += other.lifted
        for mine, theirs in ((self.refused, other.refused), (self.kinds, other.kinds)):
            for key, value in theirs.items():
                mine[key] = mine.get(key, 0) + value
        self.missed += other.missed
        self.wrong += other.wrong
        both = [b for b in (self.bitwise, other.bitwise) if b is not None]
        self.bitwise = all(both) if both else None


def judge(program: Program) -> tuple[Score, list[str]]:
    """Lift the norms of ``program`` in place; the score, and the module paths that have a site."""
    gm = program.gm
    functionalize(gm)
    canonicalize(gm)
    gm.graph.eliminate_dead_code()
    cores = [*native_norms(gm.graph), *roots(gm.graph)]
    names = {node: _described(node) for node in cores}
    work = Work(program, Options())
    lift(work)
    gm.recompile()
    left = [node for node in cores if not node._erased]
    sites = [s for s in work.report.sites if s.kind != "unknown_norm"]
    refused = Counter(s.refusal.code for s in sites if s.refusal is not None)
    recorded = sum(refused.values())
    return Score(
        present=len(cores),
        lifted=len(cores) - len(left),
        refused=dict(refused),
        kinds=dict(Counter(s.kind for s in sites)),
        missed=sorted(names[n] for n in left) if len(left) > recorded else [],
        wrong=_wrong(gm),
    ), [s.module for s in sites]


def _described(node: Node) -> str:
    path = ".".join(p for p in module_path(node).split(".") if not p.isdigit())
    return (
        f"{str(node.target).split('.')[1]} in {path or 'the model'} ({source_line(node).rsplit('/', 1)[-1]})"
    )


def _wrong(gm: GraphModule) -> list[str]:
    found = []
    for node, region in norms_in(gm):
        fakes = [a.meta["val"] for a in node.args if isinstance(a, Node)]
        if any(isinstance(f, (torch.SymInt, torch.SymFloat)) for f in fakes):
            continue
        if region.spec.statistics == "input" and not describes(region, fakes):
            found.append(f"{region.spec.kind} ({region.spelling})")
    return sorted(found)
