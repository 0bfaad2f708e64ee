"""``normfuse explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normfuse.cli.folders import explain_job
from normfuse.cli.options import (
    CRMS_BASIS,
    DEBUG,
    DTYPE,
    HTML,
    JSON,
    ONLY,
    QUIET,
    SKIP,
    SOURCE,
    TARGET,
    Target,
    as_list,
    chosen,
)
from normfuse.cli.outcome import one_line_errors
from normfuse.progress import steps

if TYPE_CHECKING:
    from normfuse.report import Report

__all__ = ["explain"]


def explain(
    source: SOURCE,
    target: TARGET = Target.RMS_NORM,
    crms_basis: CRMS_BASIS = None,
    only: ONLY = None,
    skip: SKIP = None,
    dtype: DTYPE = None,
    json_file: JSON = None,
    html: HTML = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Print the graph after each stage that changes it.")
    ] = False,
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """List every norm of SRC, what it would become, and why not where it stays. Nothing is changed.

    A checkpoint folder of transformers is explained as `rewrite` would rewrite it, without its weights.
    """
    with one_line_errors(debug):
        from normfuse.files import check_outputs, write_text

        check_outputs((json_file, html), [source])
        options: dict[str, object] = {
            "target": target.value,
            "only": as_list(only),
            "skip": as_list(skip) or [],
        }
        if source and Path(source).is_dir():
            given = {"--dtype": dtype, "--crms-basis": crms_basis, "--stages": stages}
            unused = [name for name, value in given.items() if value]
            report, graphs = explain_job(source, options, unused, quiet), ""
        else:
            options["crms_basis"] = None if crms_basis is None else crms_basis.value
            with steps(quiet) as say:
                say(f"loading {source}")
                report, graphs = _report(source, chosen(dtype), options, stages)
        if not quiet:
            typer.echo(f"{graphs}{report}")
        if json_file is not None:
            write_text(json_file, report.to_json())
        if html is not None:
            report.to_html(html, model=source)


def _report(text: str, dtype: str | None, options: dict[str, object], stages: bool) -> tuple[Report, str]:
    """The report, and what to print before it."""
    from normfuse.backends.explain import explain_stages, explain_with
    from normfuse.rewriting import checked_options
    from normfuse.sources import load_source

    checked = checked_options(options)
    source = load_source(text).with_dtype(dtype)
    if not stages:
        return explain_with(checked, source.model, source.args, source.kwargs), ""
    report, graphs = explain_stages(checked, source.model, source.args, source.kwargs)
    return report, f"{graphs}\n\n"
