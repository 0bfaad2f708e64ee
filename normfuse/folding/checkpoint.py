"""Weights in files: safetensors, or a state dict of ``torch.save``."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from normfuse.errors import InputError
from normfuse.files import Sink, replacing

__all__ = ["load_checkpoint", "open_checkpoint", "save_checkpoint"]

SAFETENSORS = ".safetensors"


Metadata = dict[str, str] | None


def load_checkpoint(path: str | Path) -> tuple[dict[str, Any], Metadata]:
    """The tensors by name, on the CPU, and the metadata of a safetensors file. No code in the file is run.

    Raises:
        InputError: when there is no such file, or it is no checkpoint.
    """
    tensors, metadata = open_checkpoint(path)
    return dict(tensors), metadata


def open_checkpoint(path: str | Path) -> tuple[Mapping[str, Any], Metadata]:
    """:func:`load_checkpoint`, reading each tensor when it is asked for."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file} is a folder" if file.is_dir() else f"{file} does not exist")
    try:
        if file.suffix == SAFETENSORS:
            tensors = _Safetensors(file)
            return tensors, tensors.metadata
        return _load_state_dict(file), None
    except InputError:
        raise
    except Exception as error:
        cause = (str(error).strip().splitlines() or [""])[0].split(". ")[0]
        raise InputError(
            f"{file} is not a checkpoint that can be read: {type(error).__name__}: {cause}"
        ) from error


class _Safetensors(Mapping[str, torch.Tensor]):
    """The tensors of a file; its header was checked against its length when it was opened."""

    def __init__(self, file: Path) -> None:
        from safetensors import safe_open

        opened: Any = safe_open(file, framework="pt")
        self._opened = opened
        self._names = dict.fromkeys(opened.keys())
        self.metadata: Metadata = opened.metadata()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        found: torch.Tensor = self._opened.get_tensor(name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _load_state_dict(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        is_archive = opened.read(2) == b"PK"  # what PyTorch wrote before cannot be mapped
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file} is damaged, or holds more than tensors, which could run code; save a state_dict() alone"
        ) from error
    if not isinstance(found, Mapping):
        raise InputError(f"{file} holds a {type(found).__name__}, not a state dict")
    if not any(isinstance(value, torch.Tensor) for value in found.values()):
        inner = [str(k) for k, v in found.items() if isinstance(v, Mapping)]
        hint = f"; save its entry {inner[0]!r} alone" if inner else ""
        raise InputError(f"{file} holds no tensors by name{hint}")
    return dict(found)


def save_checkpoint(
    tensors: Mapping[str, Any], path: str | Path, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors by name, as safetensors where the suffix says so; an existing file is replaced whole.

    Raises:
        InputError: when the file cannot be written, or safetensors cannot hold an entry.
    """
    file = Path(path)
    with replacing(file) as unfinished:
        try:
            if file.suffix == SAFETENSORS:
                _save_safetensors(tensors, unfinished, metadata)
            else:
                with Sink(unfinished) as sink:
                    torch.save(dict(tensors), sink)  # type: ignore[arg-type]
        except (OSError, RuntimeError, SafetensorError) as error:
            cause = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
            raise InputError(f"cannot write {file}: {cause}") from error
    return file


def _save_safetensors(tensors: Mapping[str, Any], file: Path, metadata: Mapping[str, str] | None) -> None:
    from safetensors.torch import save_file

    others = [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise InputError(
            f"safetensors holds tensors only, and {others[0]} is not a tensor; give the output the suffix .pt"
        )
    save_file(_separate(tensors), file, metadata=dict(metadata) if metadata else None)


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors with memory of their own, which is all that safetensors knows."""
    seen: set[int] = set()
    made = {}
    for name, value in tensors.items():
        memory = value.untyped_storage().data_ptr()
        made[name] = value.clone() if memory in seen else value.contiguous()
        seen.add(memory)
    return made
