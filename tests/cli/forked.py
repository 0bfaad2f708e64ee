"""The command line in a process of its own that need not import PyTorch again."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from normfuse.cli import app

__all__ = ["command"]


def command(words: list[str], folder: Path, before: Callable[[], object]) -> tuple[int | None, str]:
    """Exit status of ``normfuse WORDS`` and what it wrote to standard error; ``before`` runs there first."""
    errors = folder / "errors.txt"
    process = multiprocessing.get_context("fork").Process(target=_main, args=(words, errors, before))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
        process.join()
    text = errors.read_text(encoding="utf-8")
    errors.unlink()
    return process.exitcode, text


def _main(words: list[str], errors: Path, before: Callable[[], object]) -> None:
    with errors.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 2)
        torch.set_num_threads(1)  # this process inherits no threads that it could wait for
        sys.stderr, sys.argv = stream, ["normfuse", *words]
        before()
        app.main()
