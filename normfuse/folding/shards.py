"""Checkpoints in several files, with an index that says which file holds which tensor."""

from __future__ import annotations

import json
from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from normfuse.errors import InputError
from normfuse.files import json_text, new_folder
from normfuse.folding.checkpoint import open_checkpoint, save_checkpoint
from normfuse.folding.weight_map import ChangedTensor, WeightMap

__all__ = ["Shards", "check_name", "fold_shards", "index_of", "record_of"]

#: What an index is called in a folder; any file that ends like the suffix may be named itself.
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SUFFIX = ".index.json"
#: No more has a place in the name of a file.
_LONGEST_NAME = 255


def index_of(checkpoint: Path) -> Path | None:
    """The index that this path names or this folder holds; None for a file with all the weights.

    Raises:
        InputError: for a folder without an index.
    """
    if checkpoint.name.endswith(_SUFFIX):
        return checkpoint
    if not checkpoint.is_dir():
        return None
    found = next((checkpoint / name for name in _INDEXES if (checkpoint / name).is_file()), None)
    if found is None:
        raise InputError(f"{checkpoint} is a folder without {' or '.join(_INDEXES)}; name a file in it")
    return found


class Shards(Mapping[str, Any]):
    """The tensors of all files of a checkpoint, each read when it is asked for.

    Raises:
        InputError: for an index that is none, a file that is missing or damaged, and a tensor that is not in
            the file that the index names.
    """

    def __init__(self, index: Path) -> None:
        self.index = index
        self.record = record_of(index)
        self.places: dict[str, str] = dict(self.record["weight_map"])
        self.files = sorted({*self.places.values()})
        held = {file: set(self.opened(file)[0]) for file in self.files}
        for name, file in self.places.items():
            if name not in held[file]:
                raise InputError(f"{index} says that {name} is in {file}, which does not hold it")
        for file, names in held.items():
            self.places |= dict.fromkeys(names, file)

    def opened(self, file: str) -> tuple[Mapping[str, Any], dict[str, str] | None]:
        """The tensors of one file, and its metadata; what is read is in memory until they are let go."""
        path = self.index.parent / file
        if not path.is_file():
            raise InputError(f"{path}, which {self.index.name} names, is missing")
        return open_checkpoint(path)

    def __getitem__(self, name: str) -> Any:
        return self.opened(self.places[name])[0][name]

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class _Remembering(Mapping[str, Any]):
    """The same, with the file that was read last at hand."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._file, self._held = "", dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        file = self._shards.places[name]
        if file != self._file:
            self._file, self._held = file, self._shards.opened(file)[0]  # type: ignore[assignment]
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._shards

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


def record_of(index: Path) -> dict[str, Any]:
    """What an index holds.

    Raises:
        InputError: for a file that is none, and for one that names files elsewhere.
    """
    try:
        record = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {index}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{index} is not the index of a checkpoint: it is not JSON") from error
    places = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(f, str) for f in places.values()):
        raise InputError(
            f"{index} is not the index of a checkpoint: it has no weight_map from tensors to files"
        )
    for name, file in places.items():
        try:
            check_name(name)
            check_name(file)
        except ValueError as error:
            raise InputError(f"{index} is not the index of a checkpoint: {error}") from error
        if Path(file).name != file or file in (".", ".."):
            raise InputError(f"{index} names the file {file!r}, which is not in the same folder")
    found: dict[str, Any] = record
    return found


def check_name(name: str) -> None:
    """A tensor or a file may be called so: what people read stays on one line, and is one.

    Raises:
        ValueError: showing the beginning of the name.
    """
    if not name.isprintable() or len(name) > _LONGEST_NAME:
        raise ValueError(f"{name[:60]!a} is no name of a tensor or a file")


def fold_shards(
    changes: WeightMap, shards: Shards, target: Path, progress: Callable[[str], None] = lambda text: None
) -> int:
    """Write the folded checkpoint as the folder ``target``, in files of the same names; returns its tensors.

    A tensor that is new goes where its first source is. No more is held in memory than one file and the
    sources of one tensor.

    Raises:
        InputError: when the map does not fit, or something cannot be read or written.
    """
    progress("checking the weights against the map")
    changes.check(_Remembering(shards))
    placed = _placed(changes, shards)
    places: dict[str, str] = {}
    size = 0
    with new_folder(target) as folder:
        for number, file in enumerate(shards.files, 1):
            progress(f"folding {file}, {number} of {len(shards.files)}")
            written = _fold_file(changes, placed[file], shards, file, folder)
            places |= dict.fromkeys(written, file)
            size += sum(written.values())
        _write_index(folder / shards.index.name, shards.record, dict(sorted(places.items())), size)
    return len(places)


def _fold_file(
    changes: WeightMap, placed: list[ChangedTensor], shards: Shards, file: str, folder: Path
) -> dict[str, int]:
    """The sizes in bytes of what was written; the tensors themselves are gone when the next file is read."""
    opened, metadata = shards.opened(file)
    held = dict(opened)
    near = ChainMap(held, cast(dict[str, Any], shards))
    tensors = {**held, **{one.name: changes.fold_one(one, near) for one in placed}}
    save_checkpoint(tensors, folder / file, metadata)
    return {name: t.nbytes if isinstance(t, torch.Tensor) else 0 for name, t in tensors.items()}


def _write_index(path: Path, record: dict[str, Any], places: dict[str, str], size: int) -> None:
    given = record.get("metadata")
    metadata = {**(given if isinstance(given, dict) else {}), "total_size": size}
    path.write_text(json_text({**record, "metadata": metadata, "weight_map": places}), encoding="utf-8")


def _placed(changes: WeightMap, shards: Shards) -> dict[str, list[ChangedTensor]]:
    """The changed tensors by the file that they go to."""
    placed: dict[str, list[ChangedTensor]] = defaultdict(list)
    for one in changes.changed:
        held = (changes.holder(name, shards) for name in (one.name, *one.sources))
        found = next((name for name in held if name is not None), None)
        placed[shards.files[0] if found is None else shards.places[found]].append(one)
    return placed
