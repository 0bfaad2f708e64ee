"""Build, capture and judge every model type of the installed ``transformers``, and write the table.

python -m bench.corpus run              # what has no row yet; stop and start as you like
python -m bench.corpus run llama vit    # these again
python -m bench.corpus table            # rows to bench/results/corpus.csv

python -m bench.corpus run --route compile --rows build/sweep   # compile and call each instead
python -m bench.corpus swept                                    # rows to bench/results/sweep.csv

python -m bench.corpus run --route rewrite --seconds 120 --rows build/population    # rewrite and compare
python -m bench.corpus population               # rows to bench/results/population.csv and docs/population.md
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Annotated

import typer

from normfuse.files import write_text

app = typer.Typer(add_completion=False, help=__doc__)
ROWS = Path("build/corpus")
SWEEP = Path("build/sweep")
POPULATION = Path("build/population")


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

    from bench.corpus.table import brief, known_rows

    rows.mkdir(parents=True, exist_ok=True)
    routes, known = route or ["export", "dynamo"], known_rows()
    chosen = names or sorted(CONFIG_MAPPING.keys(), key=lambda name: _place(name, known))
    for count, name in enumerate(chosen, 1):
        target = rows / f"{name}.json"
        if names or not _is_done(target, routes, again):
            _in_a_process(name, routes, target, seconds, known.get(name, {}).get("recipe", ""))
            said = brief(json.loads(target.read_text()), routes)
            typer.echo(f"{count:4d} of {len(chosen)}  {name}  {said}")


def _mixed(name: str) -> int:
    """An order that is always the same and puts no family first, so that a part is a fair sample."""
    return zlib.crc32(name.encode())


def _place(name: str, known: dict[str, dict[str, str]]) -> tuple[bool, bool, int]:
    """First what ran the last time, and of that what has LayerNorms, in a mixed order."""
    row = known.get(name, {})
    return not row.get("recipe"), "layer_norm" not in row.get("found", ""), _mixed(name)


def _is_done(target: Path, routes: list[str], again: bool) -> bool:
    if not target.exists():
        return False
    row = json.loads(target.read_text())
    return ("reason" in row and not again) or all(r in row for r in routes)


def _in_a_process(name: str, routes: list[str], target: Path, seconds: int, recipe: str) -> None:
    """A fork, so that the libraries are imported once."""
    from bench.corpus.worker import run_one

    child = os.fork()
    if child == 0:
        try:
            run_one(name, routes, target, seconds, recipe)
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


@app.command()
def population(
    rows: Annotated[Path, typer.Option(help="folder of the rows")] = POPULATION,
    to: Annotated[Path, typer.Option(help="the table")] = Path("bench/results/population.csv"),
    page: Annotated[Path, typer.Option(help="the page")] = Path("docs/population.md"),
) -> None:
    """Write the rows of the route *rewrite* to one table and to a page of the documentation."""
    from bench.corpus.population import read_population, render, write_population
    from bench.corpus.table import known_rows

    lines = write_population(rows, to, known_rows())
    write_text(page, render(read_population(to)))
    waiting = sum(line["status"] == "no row yet" for line in lines)
    typer.echo(f"{len(lines)} model types, {waiting} of them without a row yet")


if __name__ == "__main__":
    app()
