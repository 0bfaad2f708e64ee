"""A checkpoint folder as it is given: its files, and every tensor under the name that it has on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from normfuse.checkpoint.header import Head, Stored, read_head
from normfuse.checkpoint.mapped import Mapped
from normfuse.checkpoint.numbers import check_numbers
from normfuse.errors import InputError
from normfuse.folding.checkpoint import open_checkpoint
from normfuse.folding.shards import record_of

__all__ = ["INDEX", "RECORD", "SINGLE", "Folder", "json_of"]

RECORD = "normfuse.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LAYOUTS = (
    (SINGLE, INDEX),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    (f"normfuse-{SINGLE}", f"normfuse-{INDEX}"),
)
#: Weights that are not read here, and code: neither is copied beside weights that they do not fit.
_LEFT_OUT = {
    ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".tflite", ".safetensors", ".py",
    ".pyc", ".so",
}  # fmt: skip


def json_of(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        InputError: for any other file.
    """
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: it is not JSON") from error
    if not isinstance(held, dict):
        raise InputError(f"{file} is damaged: it is not a JSON object")
    return held


class Folder:
    """A folder with a ``config.json`` and weights in one file or several.

    ``config`` is what ``config.json`` holds, ``index`` what the index holds (None for a single file),
    ``heads`` the tensors of each file of weights, ``places`` the file of each tensor. ``is_pickled`` says
    that the files are those of ``torch.save``, which are read with ``weights_only=True``.

    Raises:
        InputError: when something is missing, damaged or contradicts the index.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "config.json").is_file():
            raise InputError(f"{path} is no checkpoint folder: it has no config.json")
        self.config = json_of(path / "config.json")
        check_numbers(self.config, path / "config.json")
        single, index = self._layout()
        self.is_pickled = single.endswith(".bin")
        self.index_name = index
        self.index = None if (path / single).is_file() else record_of(path / index)
        files = [single] if self.index is None else sorted({*self.index["weight_map"].values()})
        self._held: dict[str, Mapping[str, Any]] = {}
        self.heads = {file: self._head(file) for file in files}
        self.places = {t.name: file for file, head in self.heads.items() for t in head.tensors}
        self.stored = {t.name: t for head in self.heads.values() for t in head.tensors}
        self._check_index()

    def _layout(self) -> tuple[str, str]:
        for single, index in _LAYOUTS:
            if (self.path / index).is_file() or (self.path / single).is_file():
                return single, index
        names = " or ".join(name for layout in _LAYOUTS for name in layout)
        raise InputError(f"{self.path} holds no weights: there is no {names}")

    def _head(self, file: str) -> Head:
        path, suffix = self.path / file, ".bin" if self.is_pickled else ".safetensors"
        if path.suffix != suffix:
            raise InputError(
                f"{self.path / self.index_name} names {file}, whose name does not end in {suffix}"
            )
        if not path.is_file():
            raise InputError(f"{path}, which {self.index_name} names, is missing; copy or download it again")
        return self._pickled(file) if self.is_pickled else read_head(path)

    def _pickled(self, file: str) -> Head:
        held, _ = open_checkpoint(self.path / file)
        tensors = {name: t for name, t in held.items() if isinstance(t, torch.Tensor)}
        if len(tensors) != len(held):
            other = next(name for name in held if name not in tensors)
            raise InputError(
                f"{self.path / file} holds {other}, which is no tensor; save a state_dict() alone"
            )
        self._held[file] = tensors
        stored = (Stored(n, t.dtype, tuple(t.shape), 0, t.nbytes) for n, t in tensors.items())
        return Head(tuple(stored), {"format": "pt"})

    def _check_index(self) -> None:
        for name, file in ({} if self.index is None else self.index["weight_map"]).items():
            if self.places.get(name) != file:
                found = self.places.get(name)
                where = "no file has" if found is None else f"is in {found}"
                which = (
                    f"{name} is in {file}, and it {where}"
                    if found
                    else f"{name} is in {file}, and {where} it"
                )
                raise InputError(
                    f"{self.path / self.index_name} says that {which}; copy or download it again"
                )
        if len(self.places) != sum(len(head.tensors) for head in self.heads.values()):
            raise InputError(f"{self.path} holds a tensor twice, in several files; keep one of them")

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor; its bytes stay in the file until they are looked at."""
        file = self.places[name]
        if self.is_pickled:
            found: torch.Tensor = self._held[file][name].detach()
            return found
        return self.mapped(file).tensor(self.stored[name])

    @lru_cache(maxsize=4)  # noqa: B019  # the folder lives as long as the command
    def mapped(self, file: str) -> Mapped:
        """One file of weights, mapped into memory."""
        return Mapped(self.path / file)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all floating tensors.

        Raises:
            InputError: when there are several, or none.
        """
        first: dict[torch.dtype, str] = {}
        for one in self.stored.values():
            if one.dtype.is_floating_point:
                first.setdefault(one.dtype, one.name)
        if len(first) == 1:
            return next(iter(first))
        said = ", ".join(f"{name} is {str(dtype).removeprefix('torch.')}" for dtype, name in first.items())
        raise InputError(
            f"{self.path} holds tensors of several dtypes ({said}); save the model in one dtype first"
            if first
            else f"{self.path} holds no floating tensors"
        )

    def others(self) -> tuple[list[str], list[str]]:
        """The files beside the weights: those to copy, and those that are left out, as folders are."""
        known = {*self.heads, self.index_name}
        names = sorted(p.name for p in self.path.iterdir() if p.is_file() and p.name not in known)
        names = [name for name in names if not name.startswith(".") and name != RECORD]
        left = [n for n in names if Path(n).suffix in _LEFT_OUT or n.endswith(".index.json")]
        folders = sorted(p.name for p in self.path.iterdir() if p.is_dir() and not p.name.startswith("."))
        return [n for n in names if n not in left], [*left, *(f"{name}/" for name in folders)]
