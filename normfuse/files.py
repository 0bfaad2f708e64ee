"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from normfuse.errors import InputError

__all__ = [
    "Sink",
    "check_new_folder",
    "check_outputs",
    "check_writable",
    "is_program_file",
    "json_text",
    "new_folder",
    "replacing",
    "write_text",
]


def is_program_file(value: object) -> TypeGuard[str | Path]:
    """Whether ``value`` names a program: a path, or a text that ends in ``.pt2``."""
    return isinstance(value, Path) or (isinstance(value, str) and value.endswith(".pt2"))


def check_writable(target: str | Path) -> Path:
    """``target`` as a path whose folder exists and can be written to.

    Raises:
        InputError: naming the folder, before any work was done.
    """
    path = Path(target)
    _check_name(path)
    _check_folder(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():
        raise InputError(f"cannot write {path}: it is a device or a pipe, which cannot be replaced by a file")
    return path


def check_outputs(outputs: Iterable[str | Path | None], inputs: Iterable[str | Path]) -> None:
    """Each output can be written, is written once, and is none of the inputs, nor in one that is a folder.

    Raises:
        InputError: naming the file, before any work was done.
    """
    seen: set[Path] = set()
    read = [Path(file) for file in inputs]
    for file in outputs:
        if file is None:
            continue
        path = check_writable(file)
        if path.exists() and any(one.exists() and path.samefile(one) for one in read):
            raise InputError(f"{path} is the input; choose another file for the output")
        if any(one.is_dir() and one.resolve() in path.resolve().parents for one in read):
            raise InputError(f"{path} is in the folder of the input; choose another place for the output")
        if path.resolve() in seen:
            raise InputError(f"{path} would be written twice; choose another file for one of the outputs")
        seen.add(path.resolve())


def _check_name(path: Path) -> None:
    """Loops of links, which ``resolve`` does not report everywhere, and names that no file can have."""
    try:
        path.stat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: the folder {path.parent} is read-only")


@contextmanager
def replacing(target: str | Path) -> Iterator[Path]:
    """A path to write to, with the name of ``target``; it takes the target's place when the block succeeds.

    After an error the target is what it was, and nothing is left beside it. Where the target is a link, what
    it points to is replaced.

    Raises:
        InputError: when the folder does not exist or takes no files, or the disk is full.
    """
    path = check_writable(target).resolve()
    with _aside(path, target) as unfinished:
        yield unfinished
        unfinished.replace(path)


@contextmanager
def _aside(path: Path, shown: str | Path) -> Iterator[Path]:
    """The same name in a temporary folder beside ``path``; errors of the file system name ``shown``."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=".normfuse-", dir=path.parent))
        yield folder / path.name
    except OSError as error:
        raise InputError(f"cannot write {shown}: {error.strerror or error}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``target`` when the block succeeds; after an error nothing is left.

    Where the target is a link, what it points to is made.

    Raises:
        InputError: when ``target`` exists and is no empty folder, or its parent takes no folders.
    """
    path = check_new_folder(target).resolve()
    with _aside(path, target) as unfinished:
        unfinished.mkdir()
        yield unfinished
        unfinished.replace(path)


def check_new_folder(target: str | Path) -> Path:
    """``target`` as the path of a folder that can be made.

    Raises:
        InputError: saying what stands in the way, before any work was done.
    """
    path = Path(target)
    _check_name(path)
    _check_folder(path)
    if (path.exists() and not path.is_dir()) or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"cannot write {path}: it exists; choose a new folder")
    return path


class Sink(io.RawIOBase):
    """A file for PyTorch's writer, which ends the whole process when a disk is full.

    An error of writing is kept, what follows is dropped, and closing raises it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("wb")
        self._error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            if self._error is None and self._file.write(data) != size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._error = error
        return size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.tell() if self._error is not None else self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        """Raises the error of an earlier write."""
        if self.closed:
            return
        super().close()
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            raise self._error


def write_text(target: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8; an existing file is replaced as a whole."""
    with replacing(target) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return Path(target)


def json_text(value: Any) -> str:
    """Plain values as JSON; what is not finite, which JSON does not know, as ``"inf"`` or ``"nan"``."""
    return json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(held) for held in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
