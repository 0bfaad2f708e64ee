"""``normfuse verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from normfuse.cli.options import DEBUG, HTML, JSON, QUIET
from normfuse.cli.outcome import one_line_errors
from normfuse.progress import steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from normfuse.verify.equivalence import Equivalence
    from normfuse.verify.programs import CaseOutcome, ProgramEquivalence

__all__ = ["verify"]

REFERENCE = Annotated[
    str,
    typer.Argument(
        metavar="A", help="The original: a .pt2 program or module.path:factory.", show_default=False
    ),
]
CANDIDATE = Annotated[
    str, typer.Argument(metavar="B", help="What should be the same function.", show_default=False)
]


def verify(
    reference: REFERENCE,
    candidate: CANDIDATE,
    random: Annotated[
        int | None,
        typer.Option(min=0, help="How many random inputs; one, or four with --thorough.", show_default=False),
    ] = None,
    hostile: Annotated[bool, typer.Option(help="Also inputs that norms suffer from.")] = True,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Every kind of inputs that norms suffer from.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random inputs.")] = 0,
    json_file: JSON = None,
    html: HTML = None,
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """Is B as close to A in float64 as A itself is? From the files alone.

    Compared on the inputs stored in A, on random ones (also of other sizes where A allows it) and on hostile
    ones, for about the price of 25 runs of A. Exit status 0 when they are equivalent, 1 when not or when an
    output could not be judged.
    """
    with one_line_errors(debug):
        from normfuse.files import check_outputs, json_text, write_text

        check_outputs([json_file, html], [reference, candidate])
        with steps(quiet) as say:
            chosen = {"random": random, "hostile": hostile, "seed": seed, "thorough": thorough}
            found = _compared(reference, candidate, chosen, say)
        if not quiet:
            _show(found)
        if json_file is not None:
            write_text(json_file, json_text(found.to_dict()))
        if html is not None:
            found.to_html(html, reference=reference, candidate=candidate)
        raise typer.Exit(0 if found.ok else 1)


def _compared(
    reference: str, candidate: str, chosen: dict[str, Any], say: Callable[[str], None]
) -> ProgramEquivalence:
    from normfuse.errors import InputError
    from normfuse.rewriting import as_program
    from normfuse.sources import load_source
    from normfuse.verify.programs import cases_of, compare_programs

    programs = []
    for text in (reference, candidate):
        say(f"loading {text}")
        source = load_source(text)
        programs.append(as_program(source.model, source.args, source.kwargs, source.dynamic_shapes))
    cases = cases_of(programs[0], **chosen)
    if not cases:
        raise InputError(
            f"{reference} holds no example inputs, and without --random there is nothing to run it on"
        )
    return compare_programs(programs[0], programs[1], cases, lambda name: say(f"comparing: {name}"))


def _show(found: ProgramEquivalence) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("inputs", "error / original's", "largest error", "relative", "verdict")
    for case in found.cases:
        one = case.equivalence
        figures = ("", "", "") if one is None else _figures(one)
        table.add_row(case.name, *figures, _verdict(case))
    console = Console(
        width=None if Console().is_terminal else 110, highlight=False, markup=False, emoji=False
    )
    console.print(table)
    console.print(_summary(found), soft_wrap=True)
    for case in found.cases:
        for leaf in () if case.equivalence is None else case.equivalence.leaves:
            if not leaf.ok:
                why = f"; {leaf.reason}" if leaf.reason else ""
                console.print(
                    f"  {case.name}: {leaf.path} has error ratio {leaf.figure}{why}", soft_wrap=True
                )
            elif leaf.path in found.unjudged:
                console.print(f"  {case.name}: {leaf.path} was not judged; {leaf.reason}", soft_wrap=True)
        if case.note:
            console.print(f"  {case.name}: {case.note}", soft_wrap=True)


def _summary(found: ProgramEquivalence) -> str:
    """The worst figure and what is allowed, which for float64 is a distance and no ratio."""
    import torch

    from normfuse.verify.equivalence import worst_of
    from normfuse.verify.judge import DOUBLE_BOUND

    judged = [leaf for leaf in found.leaves if leaf.judged]
    wide = [leaf for leaf in judged if leaf.dtype in (torch.float64, torch.complex128)]
    worst = worst_of([leaf for leaf in judged if leaf not in wide])
    figures = [f"worst error ratio {worst.figure}"] if worst is not None else []
    if wide:
        largest = max(leaf.max_rel_error for leaf in wide)
        figures.append(f"largest relative error in float64 {largest:.2g} ({DOUBLE_BOUND:.2g} allowed)")
    if found.unjudged and not found.differs:
        figures.insert(0, f"the original is no yardstick for {', '.join(found.unjudged)} on any input")
    return f"{found.verdict}: {'; '.join(figures) or 'nothing could be judged'}"


def _figures(found: Equivalence) -> tuple[str, str, str]:
    if not any(leaf.judged for leaf in found.leaves):
        return "", "", ""
    figure = "" if found.worst is None else found.worst.figure
    return figure, f"{found.max_abs_error:.2e}", f"{found.max_rel_error:.2e}"


def _verdict(case: CaseOutcome) -> str:
    if not case.ok:
        return "NOT equivalent"
    if case.equivalence is None:
        return "not run"
    return "equivalent" if any(leaf.judged for leaf in case.equivalence.leaves) else "not judged"
