"""``normfuse rewrite`` from a checkpoint folder to a checkpoint folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from normfuse.progress import steps

if TYPE_CHECKING:
    from normfuse.checkpoint import RewrittenFolder

__all__ = ["FolderJob", "is_folder_job"]

_HUB = re.compile(r"[\w.-]+/[\w.-]+|[A-Za-z][\w-]*")


def is_folder_job(source: str, destination: Path) -> bool:
    """Whether a folder is to be rewritten, by what is there and how the output is called."""
    if source and Path(source).is_dir():
        return True
    return destination.suffix != ".pt2" and not source.endswith(".pt2") and _HUB.fullmatch(source) is not None


@dataclass(frozen=True)
class FolderJob:
    """One call of the command; ``unused`` are options that were given and that folders do not have."""

    source: str
    destination: Path
    options: dict[str, Any]
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
                new_biases=self.new_biases,
                force=self.force,
                progress=say,
                **self.options,
            )
        self._write_report(done)
        if not quiet:
            _show(done)

    def _check(self) -> None:
        from normfuse.errors import InputError, OptionError
        from normfuse.files import check_outputs

        if not Path(self.source).is_dir():
            raise InputError(
                f"{self.source} is no folder here; if it is the name of a model on a hub, get its folder "
                f"first: hf download {self.source} --local-dir FOLDER"
            )
        if self.destination.suffix == ".pt2":
            raise InputError(
                f"{self.source} is a folder, so the output has to be a folder too; for a program name Python "
                "code that loads the model, as module.path:factory"
            )
        if self.unused:
            raise OptionError(f"{self.unused[0]} is not for checkpoint folders; leave it out")
        check_outputs([self.json_file, self.html], [])

    def _write_report(self, done: RewrittenFolder) -> None:
        if self.json_file is not None:
            from normfuse.files import json_text, write_text

            loads = {"loads_in_transformers": done.is_plain, "left_out": list(done.left_out)}
            write_text(self.json_file, json_text({**done.report.to_dict(), **loads}))
        if self.html is not None:
            done.report.to_html(self.html, model=self.source)


def _show(done: RewrittenFolder) -> None:
    typer.echo(str(done.report))
    if done.left_out:
        typer.echo(f"not copied (other weights, code, folders): {', '.join(done.left_out)}")
    if done.reused:
        typer.echo(f"{done.reused} files of an interrupted run were used again")
    typer.echo(f"wrote {done.path}: normfuse.load_checkpoint({str(done.path)!r}) loads it with its new norms")
    if done.is_plain:
        typer.echo("transformers alone loads it too, as the original class, and computes the same")
    else:
        typer.echo("transformers alone does not load it: layers have biases that their class does not have")
