"""Reading and writing programs."""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from torch.export import ExportedProgram

from normfuse.errors import InputError
from normfuse.files import Sink, replacing
from normfuse.pt2.archive import check_archive
from normfuse.pt2.elsewhere import foreign_operators

__all__ = ["load_program", "save_program"]

#: Packages that may be imported because a program's inputs or outputs are of their classes.
_PACKAGES = ("transformers",)


def load_program(path: str | Path) -> ExportedProgram:
    """The program that ``torch.export.save`` wrote to ``path``; nothing in the file is executed.

    A program that takes or returns an object of ``transformers`` has that library imported, which
    registers the class.

    Raises:
        InputError: when there is no such file, or it is no program that this PyTorch reads.
    """
    file = Path(path)
    check_archive(file)
    try:
        return _load(file)
    except Exception as error:
        missing = re.search(r"Deserializing (\S+) in pytree is not registered", str(error))
        if missing is None:
            raise _damaged(file, error) from error
        unknown = missing[1]
    if not _register(unknown):
        raise InputError(
            f"{file} takes or returns {unknown}, which is not registered here; import its module first and "
            "pass the program to normfuse in Python"
        )
    try:
        return _load(file)
    except Exception as error:
        raise _damaged(file, error) from error


def _load(file: Path) -> ExportedProgram:
    """``torch.export.load``, raising the error that it only logs."""
    with _unlogged() as hidden:
        try:
            return torch.export.load(file)
        except Exception as error:
            raise (hidden or [error])[0] from None


def _register(name: str) -> bool:
    module, _, _ = name.rpartition(".")
    if module.split(".")[0] not in _PACKAGES:
        return False
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _damaged(file: Path, error: Exception) -> InputError:
    foreign = foreign_operators(str(error))
    if foreign:
        return InputError(f"{file} {foreign}")
    cause = textwrap.shorten((str(error).strip().splitlines() or [""])[0], 200, placeholder=" ...")
    return InputError(
        f"{file} is damaged, or is not a program that PyTorch {torch.__version__} can read: "
        f"{type(error).__name__}: {cause}"
    )


def save_program(program: ExportedProgram, path: str | Path) -> Path:
    """Write a ``.pt2`` file; an existing one is replaced as a whole, or not at all.

    Raises:
        InputError: when the folder does not exist or the file cannot be written.
    """
    with replacing(path) as unfinished:
        try:
            with Sink(unfinished) as sink:
                torch.export.save(program, sink)  # type: ignore[arg-type]
        except (OSError, RuntimeError) as error:
            cause = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
            raise InputError(f"cannot write {path}: {cause}") from error
    return Path(path)


@contextmanager
def _unlogged() -> Iterator[list[BaseException]]:
    """The errors that PyTorch logs while it reads a file, instead of their tracebacks on the screen."""
    errors: list[BaseException] = []

    def hide(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            errors.append(record.exc_info[1])
        return False

    names = ("torch.export", "torch.export.pt2_archive._package", "torch._export.serde.serialize")
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(hide)
    try:
        yield errors
    finally:
        for logger in loggers:
            logger.removeFilter(hide)
