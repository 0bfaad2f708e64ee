"""A folder beside the output that becomes it, and that a later run goes on with when this one is interrupted.

    out/  <-  .out.normfuse/    finished files, one ``.part``, and ``.state`` with what they were made from

A file is complete when it has its own name. An error leaves nothing; an interrupt, or the loss of power,
leaves the finished files, which are used again where input, options and versions are the same.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from normfuse.errors import InputError, NormfuseError
from normfuse.files import check_new_folder, check_writable

__all__ = ["Workplace", "check_target", "workplace"]

_STATE = ".state"


class Workplace:
    """A file has its own name when it is complete, and ``.part`` behind it until then.

    ``reused`` counts the files that an earlier run finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reused = 0

    def has(self, name: str) -> bool:
        """Whether an earlier run finished this file."""
        found = (self.path / name).exists()
        self.reused += found
        return found

    def unfinished(self, name: str) -> Path:
        """Where to write the file."""
        return self.path / f"{name}.part"

    def write_text(self, name: str, text: str) -> None:
        """A small file, down to the disk."""
        with (self.path / name).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, name: str, to_disk: Callable[[], None]) -> None:
        """Bring the file down to the disk, and give it its name then."""
        to_disk()
        self.unfinished(name).replace(self.path / name)


def check_target(source: Path, target: Path, force: bool) -> None:
    """Whether the output can be made there.

    Raises:
        InputError: when it exists and ``force`` is False, is no checkpoint folder, or contains the input.
    """
    given, made = source.resolve(), target.resolve()
    if made == given or made in given.parents or given in made.parents:
        raise InputError(f"cannot write {target}: it is the input, or one of the two contains the other")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        check_new_folder(target)
        return
    if not force:
        raise InputError(f"cannot write {target}: it exists; choose a new folder, or replace it with --force")
    if not (target.is_dir() and (target / "config.json").is_file()):
        raise InputError(f"cannot write {target}: it exists and is no checkpoint folder; choose a new folder")
    check_writable(target.resolve().parent / f".{made.name}.normfuse-check")


@contextmanager
def workplace(target: Path, state: str) -> Iterator[Workplace]:
    """A folder to fill, which becomes ``target`` when the block succeeds; what is there is replaced.

    Raises:
        InputError: when the disk is full, or another run is at work there.
    """
    path = target.resolve()
    work = path.parent / f".{path.name}.normfuse"
    try:
        work.mkdir(exist_ok=True)
        with _locked(path.parent / f".{path.name}.normfuse-lock", target):
            old = path.parent / f".{path.name}.normfuse-old"
            _put_back(old, path)
            _use_again(work, state)
            yield Workplace(work)
            (work / _STATE).unlink()
            _move_in(work, path, old)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    except BusyError:
        raise
    except Exception:
        shutil.rmtree(work, ignore_errors=True)
        raise


class BusyError(NormfuseError):
    """Another run writes to the same folder."""


@contextmanager
def _locked(lock: Path, target: Path) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except BlockingIOError:
            is_there = False
        if not is_there:  # or another run has removed it in between
            raise BusyError(f"cannot write {target}: another run is writing it")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _use_again(work: Path, state: str) -> None:
    """Keep what was finished of the same work, and nothing else."""
    known = work / _STATE
    if not (known.is_file() and known.read_text(encoding="utf-8") == state):
        shutil.rmtree(work)
        work.mkdir()
        known.write_text(state, encoding="utf-8")
    for part in work.glob("*.part"):
        part.unlink()


def _put_back(old: Path, path: Path) -> None:
    """What a run that was stopped while it replaced the folder had set aside."""
    if old.exists() and path.exists():
        shutil.rmtree(old)
    elif old.exists():
        old.replace(path)


def _move_in(work: Path, path: Path, old: Path) -> None:
    _to_disk(work)
    if path.exists():
        path.replace(old)
    try:
        work.replace(path)
    except OSError:
        if old.exists():
            old.replace(path)
        raise
    _to_disk(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
