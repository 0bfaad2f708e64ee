"""Train small transformers with each norm, and write the page that compares them.

    python -m bench.train_norms            runs what bench/results/training does not hold yet
    python -m bench.train_norms --page     writes docs/layers/comparison.md from what it holds

Each run takes less than a minute on one core. Stop it and call it again: finished runs are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench.training.page import write_page
from bench.training.run import NORMS, train
from bench.training.tasks import TASKS
from normfuse.files import json_text, write_text
from normfuse.progress import steps as progress

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[1]
_STEPS = {"digits": 400, "text": 400}


def main(
    results: Annotated[Path, typer.Option(help="One JSON file for each run.")] = _ROOT
    / "bench/results/training",
    tasks: Annotated[list[str], typer.Option("--task", help="digits, text")] = [*TASKS],  # noqa: B006
    norms: Annotated[list[str], typer.Option("--norm", help=", ".join(NORMS))] = [*NORMS],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer, to try it out.")] = None,
    page: Annotated[bool, typer.Option("--page", help="Write the page and run nothing.")] = False,
    target: Annotated[Path, typer.Option(help="Where the page goes.")] = _ROOT / "docs/layers/comparison.md",
) -> None:
    """Run what is missing, or write the page."""
    _check(tasks, TASKS, "--task")
    _check(norms, NORMS, "--norm")
    console = Console(stderr=True)
    if page:
        for path in write_page(results, target):
            console.print(f"wrote {path}")
        return
    results.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    wanted = [(t, n, s) for t in tasks for s in range(seeds) for n in norms]
    missing = [one for one in wanted if not _file(results, *one).exists()]
    console.print(f"{len(missing)} of {len(wanted)} runs are missing in {results}")
    with progress(quiet=False, total=len(missing)) as say:
        for task, norm, seed in missing:
            say(f"{task}, {norm}, seed {seed}")
            made = train(TASKS[task](), norm, seed, steps or _STEPS[task])
            write_text(_file(results, task, norm, seed), json_text(made))


def _file(results: Path, task: str, norm: str, seed: int) -> Path:
    return results / f"{task}-{norm}-{seed}.json"


def _check(given: list[str], known: Iterable[str], option: str) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            raise typer.BadParameter(f"{name} is none of {', '.join(names)}", param_hint=option)


if __name__ == "__main__":
    typer.run(main)
