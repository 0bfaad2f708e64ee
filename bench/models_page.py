"""The page of what each model type gains, from the sweep: ``python -m bench.models_page``."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from normfuse.files import write_text

__all__ = ["PAGE", "SWEEP", "render"]

ROOT = Path(__file__).resolve().parents[1]
SWEEP = ROOT / "bench" / "results" / "sweep.csv"
PAGE = ROOT / "docs" / "models.md"

#: What became of the LayerNorms of a model type, in the order of the page.
_OUTCOMES = {
    "all": ("All LayerNorms become RMSNorms", "In a pre-norm model whose stream is written by weights."),
    "some": ("Some LayerNorms become RMSNorms", "Streams of one model may fare differently."),
    "none": ("LayerNorms stay", "The codes say why; the column counts norms."),
    "rms": (
        "RMSNorms and no LayerNorm",
        "There is no mean to remove. What follows an RMSNorm may still fold.",
    ),
    "other": ("Other norms only", "Batch, group, instance and L2 norms."),
}
_HEAD = """
# Which models gain what

What became of the norms of each model type of the installed `transformers`, compiled with
`torch.compile(model, backend="normfuse")` in inference: {types} types with {norms} norms. Every one was
built from a tiny random configuration of its own class and its result compared with the model's ([the
sweep](corpus.md#the-sweep)). In {changed} types norms were changed.

This is about form and not about speed. How long models of full size take is on the page
[latency](benchmarks.md): on a CPU most of what is gained is that of constant weights. `normfuse explain`
says for your model what would become of each norm, and `normfuse bench` what that is worth.

The page is written by `python -m bench.models_page` from `bench/results/sweep.csv`.
"""


def render(rows: Iterable[dict[str, str]]) -> str:
    """The page of these rows, as Markdown."""
    judged = [row for row in rows if row["status"] == "ok" and row["found"]]
    groups: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for row in judged:
        groups[_outcome(row)].append(row)
    changed = sum(_number(row["converted"]) + _number(row["folded"]) > 0 for row in judged)
    norms = sum(sum(_counts(row["found"]).values()) for row in judged)
    head = _HEAD.format(types=len(judged), norms=f"{norms:,}", changed=changed).strip()
    parts = ["\n\n".join(" ".join(one.split()) for one in head.split("\n\n")) + "\n"]
    return "\n".join([*parts, *(_section(name, groups[name]) for name in _OUTCOMES if groups[name])])


def _outcome(row: dict[str, str]) -> str:
    found, after = _counts(row["found"]), _counts(row["after"])
    if not found["layer_norm"]:
        return "rms" if found["rms_norm"] else "other"
    if not after["layer_norm"]:
        return "all"
    return "some" if after["layer_norm"] < found["layer_norm"] else "none"


def _section(name: str, rows: list[dict[str, str]]) -> str:
    title, says = _OUTCOMES[name]
    norms = "norms stay because"
    head = [f"## {title}", "", f"{len(rows)} types. {says}", ""]
    if name in ("rms", "other"):
        return "\n".join([*head, ", ".join(f"`{row['architecture']}`" for row in rows) + ".", ""])
    table = [f"| type | found | after | {norms} |", "|---|---|---|---|"]
    table += [
        f"| `{r['architecture']}` | {_shown(r['found'])} | {_shown(r['after'])} | {_shown(r['refused'])} |"
        for r in rows
    ]
    return "\n".join([*head, *table, ""])


def _shown(cell: str) -> str:
    return ", ".join(f"{count} `{name}`" for name, count in _counts(cell).items())


def _counts(cell: str) -> Counter[str]:
    """``5 layer_norm; 1 rms_norm``."""
    return Counter({name: int(count) for count, name in re.findall(r"(\d+) (\w+)", cell)})


def _number(cell: str) -> int:
    return int(cell or 0)


def _main() -> None:
    with SWEEP.open(encoding="utf-8", newline="") as file:
        write_text(PAGE, render(csv.DictReader(file)))


if __name__ == "__main__":
    _main()
