"""Checkpoint folders: ``normfuse rewrite`` from one to another, and ``normfuse explain``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from normfuse.progress import steps

if TYPE_CHECKING:
    from normfuse.checkpoint import RewrittenFolder
    from normfuse.report import Report

__all__ = ["FolderJob", "explain_job", "is_folder_job"]

_HUB = re.compile(r"[\w.-]+/[\w.-]+|[A-Za-z][\w-]*")


def is_folder_job(source: str, destination: Path) -> bool:
    """Whether a folder is to be rewritten to a folder, by what is there and how the output is called."""
    if destination.suffix in (".pt2", ".onnx") or source.endswith(".pt2"):
        return False
    return bool(source) and (Path(source).is_dir() or _HUB.fullmatch(source) is not None)


@dataclass(frozen=True)
class FolderJob:
    """One call of the command; ``unused`` are options that were given and that folders do not have."""

    source: str
    destination: Path
    options: dict[str, Any]
    architecture: str | None
    new_biases: bool
    force: bool
    json_file: Path | None
    html: Path | None
    unused: tuple[str, ...] = ()

    def run(self, quiet: bool) -> None:
        """Rewrite the folder and print what became of it.

        Raises:
            InputError, OptionError: before anything is written.
        """
        from normfuse.checkpoint import rewrite_folder

        self._check()
        with steps(quiet) as say:
            say(f"reading {self.source}")
            done = rewrite_folder(
                self.source,
                self.destination,
                architecture=self.architecture,
                new_biases=self.new_biases,
                force=self.force,
                progress=say,
                **self.options,
            )
        self._write_report(done)
        if not quiet:
            self._show(done)

    def _check(self) -> None:
        from normfuse.errors import InputError
        from normfuse.files import check_outputs

        if not Path(self.source).is_dir():
            raise InputError(
                f"{self.source} is no folder here; if it is the name of a model on a hub, get its folder "
                f"first: hf download {self.source} --local-dir FOLDER"
            )
        _refuse(self.unused)
        check_outputs([self.json_file, self.html], [self.source])

    def _write_report(self, done: RewrittenFolder) -> None:
        if self.json_file is not None:
            from normfuse.files import json_text, write_text

            said = {
                "architecture": done.architecture,
                "loads_in_transformers": done.is_plain,
                "left_out": list(done.left_out),
            }
            write_text(self.json_file, json_text({**done.report.to_dict(), **said}))
        if self.html is not None:
            done.report.to_html(self.html, model=self.source, verification=self._unverified())

    def _unverified(self) -> str:
        command = shlex.join(("normfuse", "verify", self.source, str(self.destination)))
        return f"NOT verified by running the models, which takes the memory of both: {command}"

    def _show(self, done: RewrittenFolder) -> None:
        typer.echo(str(done.report))
        typer.echo(self._unverified())
        if done.left_out:
            typer.echo(f"not copied (other weights, code, folders): {', '.join(done.left_out)}")
        if done.reused:
            typer.echo(f"{done.reused} files of an interrupted run were used again")
        if self.architecture is not None:
            typer.echo(
                f"wrote {done.path}: a {done.architecture} that computes the same, for transformers alone"
            )
            return
        typer.echo(
            f"wrote {done.path}: normfuse.load_checkpoint({str(done.path)!r}) loads it with its new norms"
        )
        if done.is_plain:
            typer.echo(
                f"transformers alone loads it too, as the original class, {done.architecture}, "
                "and computes the same"
            )
        else:
            typer.echo(
                f"transformers alone does not load it: {_listed(done.new_biases)} would need biases that "
                f"{done.architecture} does not have"
            )


def _listed(layers: Sequence[str]) -> str:
    shown = ", ".join(layers[:3])
    return shown if len(layers) <= 3 else f"{shown} and {len(layers) - 3} other layers"


def explain_job(source: str, options: dict[str, Any], unused: Sequence[str], quiet: bool) -> Report:
    """What ``normfuse rewrite`` would do to a folder.

    Raises:
        InputError, OptionError: for a folder that cannot be rewritten, and options that folders do not have.
    """
    from normfuse.checkpoint import explain_folder

    _refuse(unused)
    with steps(quiet) as say:
        return explain_folder(source, progress=say, **options)


def _refuse(unused: Sequence[str]) -> None:
    from normfuse.errors import OptionError

    if unused:
        raise OptionError(f"{unused[0]} is not for checkpoint folders; leave it out")
