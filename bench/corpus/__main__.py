"""Build, capture and judge every model type of the installed ``transformers``, and write the table.

python -m bench.corpus run              # what has no row yet; stop and start as you like
python -m bench.corpus run llama vit    # these again
python -m bench.corpus table            # rows to bench/results/corpus.csv

python -m bench.corpus run --route compile --rows build/sweep   # compile and call each instead
python -m bench.corpus swept                                    # rows to bench/results/sweep.csv
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help=__doc__)
ROWS = Path("build/corpus")
SWEEP = Path("build/sweep")


@app.command()
def run(
    names: Annotated[
        list[str] | None, typer.Argument(help="model types; all without a row when empty")
    ] = None,
    route: Annotated[list[str] | None, typer.Option(help="export, dynamo, compile, or several")] = None,
    seconds: Annotated[int, typer.Option(help="limit of processor time for one architecture")] = 60,
    rows: Annotated[Path, typer.Option(help="folder of the rows")] = ROWS,
    again: Annotated[bool, typer.Option(help="try once more what could not be captured")] = False,
) -> None:
    """Make the rows that are missing, one process for each architecture."""
    from transformers import CONFIG_MAPPING

    rows.mkdir(parents=True, exist_ok=True)
    routes = route or ["export", "dynamo"]
    for name in names or sorted(CONFIG_MAPPING.keys(), key=_mixed):
        target = rows / f"{name}.json"
        if names or not _is_done(target, routes, again):
            _in_a_process(name, routes, target, seconds)


def _mixed(name: str) -> int:
    """An order that is always the same and puts no family first, so that a part is a fair sample."""
    return zlib.crc32(name.encode())


def _is_done(target: Path, routes: list[str], again: bool) -> bool:
    import json

    if not target.exists():
        return False
    row = json.loads(target.read_text())
    return ("reason" in row and not again) or all(r in row for r in routes)


def _in_a_process(name: str, routes: list[str], target: Path, seconds: int) -> None:
    """A fork, so that the libraries are imported once."""
    from bench.corpus.worker import run_one

    child = os.fork()
    if child == 0:
        try:
            run_one(name, routes, target, seconds)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if not target.exists():
        target.write_text(
            f'{{"architecture": "{name}", "reason": "no recipe runs within {seconds} s and 9 GiB"}}'
        )


@app.command()
def table(
    rows: Annotated[Path, typer.Option(help="folder of the rows")] = ROWS,
    to: Annotated[Path, typer.Option(help="the table")] = Path("bench/results/corpus.csv"),
) -> None:
    """Write all rows to one table, and print its sums."""
    from bench.corpus.table import summary, write

    typer.echo(summary(write(rows, to)))


@app.command()
def swept(
    rows: Annotated[Path, typer.Option(help="folder of the rows")] = SWEEP,
    to: Annotated[Path, typer.Option(help="the table")] = Path("bench/results/sweep.csv"),
) -> None:
    """Write the rows of the route *compile* to one table, and print how many have each status."""
    from transformers import CONFIG_MAPPING

    from bench.corpus.table import counts, write_swept

    lines = write_swept(rows, to)
    left = set(CONFIG_MAPPING.keys()) - {line["architecture"] for line in lines}
    typer.echo(f"{counts(lines)}\n{len(left):4d} have no row yet")


if __name__ == "__main__":
    app()
