"""What a program file may hold before PyTorch is asked to read it.

``torch.export.load`` unpickles and evaluates parts of a file, so a file from elsewhere could run code.
Everything that would do so is refused here: pickled tensors and objects, compiled libraries, sample inputs
of classes that ``torch.load(weights_only=True)`` does not know, expressions that are not arithmetic.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from normfuse.errors import InputError
from normfuse.pt2.elsewhere import foreign_format
from normfuse.pt2.expressions import is_guard, is_size
from normfuse.torch_compat import schema_major

__all__ = ["check_archive"]

_MODEL = "models/model.json"
_PAYLOADS = {
    "data/weights/model_weights_config.json": "weight_",
    "data/constants/model_constants_config.json": "tensor_",
}
_SAMPLES = "data/sample_inputs/model.pt"
_FOLDERS = ("models/", "data/")
#: What one program consists of; PyTorch reads every program that the folders hold.
_ENTRY = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+")


def check_archive(path: Path) -> None:
    """Make sure that ``path`` is a program that can be read without running code from it.

    Raises:
        InputError: saying what it is instead, or what in it could run code.
    """
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, not a program; name a .pt2 file, or Python code that loads the model from "
            "the folder as module.path:factory (`normfuse rewrite FOLDER -o FOLDER` takes checkpoint folders)"
        )
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_file():
        raise InputError(f"{path} is a device or a pipe, not a program")
    try:
        foreign = foreign_format(path)
        if foreign:
            raise InputError(f"{path} is {foreign}")
        with zipfile.ZipFile(path) as archive:
            _check(path, _Entries(path, archive))
    except InputError:
        raise
    except (zipfile.BadZipFile, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a .pt2 program, or is truncated: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (NotImplementedError, RuntimeError, OverflowError, ValueError, struct.error) as error:
        raise InputError(f"{path} is damaged: its directory makes no sense ({error})") from error


class _Entries:
    """The files of an archive below its one top folder; none of them is compressed or there twice."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        infos = archive.infolist()
        names = [i.filename for i in infos]
        tops = {name.split("/")[0] for name in names}
        if len(tops) != 1 or len({n.casefold() for n in names}) != len(names):
            raise InputError(f"{path} is a zip archive, but not a .pt2 program of torch.export")
        if any(i.compress_type != zipfile.ZIP_STORED for i in infos):
            raise InputError(f"{path} is a compressed archive, which torch.export does not write")
        _check_sums(path, archive)
        self.path, self._archive, self._top = path, archive, tops.pop()
        self.names = {name.removeprefix(f"{self._top}/") for name in names}

    def read(self, name: str) -> bytes:
        if name not in self.names:
            raise InputError(f"{self.path} is not a .pt2 program of torch.export: it holds no {name}")
        return self._archive.read(f"{self._top}/{name}")

    def json(self, name: str) -> dict[str, Any]:
        text = self.read(name)
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path} is damaged: {name} is not JSON") from error
        if not isinstance(found, dict):
            raise InputError(f"{self.path} is damaged: {name} is not a JSON object")
        return found


def _check_sums(path: Path, archive: zipfile.ZipFile) -> None:
    """PyTorch does not compare the check sums that it writes, so a bit that flipped would become a weight."""
    damaged = archive.testzip()
    if damaged is not None:
        raise InputError(
            f"{path} is damaged: {damaged} does not match its check sum; copy or export the file again"
        )


def _check(path: Path, entries: _Entries) -> None:
    if "data.pkl" in entries.names:
        raise InputError(f"{path} is a checkpoint or a TorchScript file, not a program of torch.export.save")
    if entries.read("archive_format") != b"pt2":
        raise InputError(f"{path} is an archive of a format other than pt2")
    strange = sorted(n for n in entries.names if n.startswith("data/aotinductor/"))
    legacy = sorted(n for n in entries.names if n in ("data/weights/model.pt", "data/constants/model.pt"))
    if strange or legacy:
        what = "compiled code" if strange else "weights of an older format, which are pickled"
        raise InputError(f"{path} holds {what}; export the model again with this PyTorch")
    model = entries.json(_MODEL)
    _check_version(path, model)
    _check_expressions(path, model)
    for name, prefix in _PAYLOADS.items():
        _check_payload(path, entries.json(name), prefix)
    _check_samples(path, entries.read(_SAMPLES))
    _check_others(path, entries.names - {_MODEL, _SAMPLES, *_PAYLOADS})


def _check_others(path: Path, names: set[str]) -> None:
    """Nothing that PyTorch would read beside what has been looked at."""
    files = (name for name in names if not name.endswith("/"))
    strange = sorted(n for n in files if n.startswith(_FOLDERS) and not _ENTRY.fullmatch(n))
    if strange:
        raise InputError(
            f"{path} holds more than one program ({strange[0]!r}), and only one is looked at; "
            "save the program that you mean in a file of its own"
        )


def _check_version(path: Path, model: dict[str, Any]) -> None:
    version = model.get("schema_version")
    major = version.get("major") if isinstance(version, dict) else None
    if major != schema_major():
        raise InputError(
            f"{path} has schema version {major}, and PyTorch {torch.__version__} reads {schema_major()}; "
            "export the model again"
        )


def _check_expressions(path: Path, model: dict[str, Any]) -> None:
    guards = model.get("guards_code") or []
    sizes = [text for key, text in _strings(model) if key == "expr_str"]
    for text in [*(g for g in guards if not is_guard(g)), *(s for s in sizes if not is_size(s))]:
        raise InputError(f"{path} holds an expression that is not arithmetic on sizes: {str(text)[:60]!r}")


def _strings(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    stack = [value]
    while stack:
        held = stack.pop()
        if isinstance(held, dict):
            yield from held.items()
            stack.extend(held.values())
        elif isinstance(held, list):
            stack.extend(held)


def _check_payload(path: Path, config: dict[str, Any], prefix: str) -> None:
    entries = config.get("config")
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        plain = isinstance(entry, dict) and not entry.get("use_pickle")
        if not plain or not str(entry.get("path_name")).startswith(prefix):
            raise InputError(
                f"{path} holds {name!r} as a pickled object, which could run code when it is read; "
                "load the program yourself and pass it to normfuse in Python"
            )


def _check_samples(path: Path, data: bytes) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        raise InputError(
            f"{path} has sample inputs that are damaged or of classes that could run code when they are read"
        ) from error
