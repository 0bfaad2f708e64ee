"""One file of the output: unchanged bytes are copied, the rest is computed where it is going to lie."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from normfuse.checkpoint.fit import Fit
from normfuse.checkpoint.header import Stored, head_bytes
from normfuse.checkpoint.mapped import Mapped
from normfuse.checkpoint.parallel import side_by_side
from normfuse.checkpoint.planned import Made, Plan
from normfuse.checkpoint.source import Folder
from normfuse.errors import InputError
from normfuse.folding.blocks import fold_blocks

__all__ = ["Shard", "copy_file", "shards_of", "write_shard"]

#: Bytes that one call copies at most.
_CHUNK = 1 << 28


#: A tensor of a file to be written: its name, dtype and shape.
Entry = tuple[str, torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Shard:
    """One file: what it is called, from which one it is made, and the tensors in their order."""

    source: str
    target: str
    tensors: tuple[Entry, ...]


def shards_of(folder: Folder, plan: Plan) -> list[Shard]:
    """The files to write: those of the input, with what is new in its neighbour's file.

    Raises:
        InputError: when two files would get one name.
    """
    made = []
    for source, tensors in (_same_class if plan.taken is None else _other_class)(folder, plan):
        tensors.sort(key=lambda tensor: -tensor[1].itemsize)  # keeps all of them aligned
        made.append(Shard(source, target_name(source, plan.is_plain), tuple(tensors)))
    sources: dict[str, str] = {}
    for one in made:
        if sources.setdefault(one.target, one.source) != one.source:
            both = f"{sources[one.target]} and {one.source}"
            raise InputError(f"{folder.path} holds {both}, which would both become {one.target}; rename one")
    return made


def _same_class(folder: Folder, plan: Plan) -> Iterator[tuple[str, list[Entry]]]:
    for source, head in folder.heads.items():
        tensors = [(t.name, t.dtype, t.shape) for t in head.tensors]
        new = [name for name, beside in plan.beside.items() if folder.places[beside] == source]
        yield (
            source,
            [*tensors, *((name, plan.made[name].recipe.dtype, plan.made[name].shape) for name in new)],
        )


def _other_class(folder: Folder, plan: Plan) -> Iterator[tuple[str, list[Entry]]]:
    """Each tensor goes where it comes from; what is made of none, to the one before it."""
    files: dict[str, list[Entry]] = {source: [] for source in folder.heads}
    assert plan.taken is not None
    place = next(iter(files))
    for name, (dtype, shape) in plan.shapes.items():
        sources = plan.made[name].sources if name in plan.made else (plan.taken.get(name),)
        place = folder.places.get(sources[0] or "", place)
        files[place].append((name, dtype, shape))
    yield from ((source, tensors) for source, tensors in files.items() if tensors)


def target_name(source: str, is_plain: bool) -> str:
    """The same name, as safetensors, or one that the plain class does not find where it must not load it."""
    name = source.removeprefix("pytorch_").replace(".bin", ".safetensors")
    return name if is_plain else f"normfuse-{name}"


def write_shard(folder: Folder, plan: Plan, shard: Shard, target: Path) -> Callable[[], None]:
    """Write a file; what is returned brings it down to the disk, which may be done beside the next one.

    Raises:
        OSError: when the disk is full, before anything is computed.
        InputError: when a dtype cannot hold a folded weight.
    """
    names = {name for name, _, _ in shard.tensors}
    changed = {*plan.made, *plan.filled}
    is_same = plan.taken is None and names.isdisjoint(changed)
    if is_same and not folder.is_pickled:
        _copy_whole(folder.path / shard.source, target)
        return partial(_to_disk, target)
    metadata = folder.heads[shard.source].metadata
    head, placed = head_bytes(shard.tensors, metadata)
    size = placed[-1].start + placed[-1].size if placed else len(head)
    with target.open("w+b") as file:
        _reserve(file.fileno(), size)
        os.pwrite(file.fileno(), head, 0)
    mapped = Mapped(target, to_write=True)
    with (folder.path / shard.source).open("rb") as given:
        copied = [partial(_copy, given.fileno(), *run) for run in _runs(folder, plan, placed, mapped.file)]
        computed = [one for one in placed if folder.is_pickled or one.name in changed]
        filled = [partial(_fill, folder, plan, mapped, one) for one in computed]
        side_by_side(lambda work: work(), [*copied, *filled])
    return partial(_to_disk, target, mapped)


def _to_disk(file: Path, mapped: Mapped | None = None) -> None:
    if mapped is not None:
        mapped.flush()
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def copy_file(source: Path, target: Path) -> None:
    """All bytes of a file, down to the disk."""
    _copy_whole(source, target)
    _to_disk(target)


def _copy_whole(source: Path, target: Path) -> None:
    with source.open("rb") as given, target.open("wb") as file:
        _copy(given.fileno(), 0, file.fileno(), 0, source.stat().st_size)


def _reserve(file: int, size: int) -> None:
    """Room on the disk, since nothing tells of a full one while mapped memory is written."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    _write_zeros(file, size)


def _write_zeros(file: int, size: int) -> None:
    zeros = bytes(1 << 20)
    for start in range(0, size, len(zeros)):
        os.pwrite(file, zeros[: size - start], start)


def _runs(folder: Folder, plan: Plan, placed: list[Stored], file: int) -> Iterator[tuple[int, int, int, int]]:
    """What does not change, in as few pieces as there are: where each begins, and where it goes."""
    runs: list[list[int]] = []
    for one in placed:
        if folder.is_pickled or one.name in plan.made or one.name in plan.filled:
            continue
        start = folder.stored[_taken(plan, one.name)].start
        if runs and (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]) == (start, one.start):
            runs[-1][2] += one.size
        else:
            runs.append([start, one.start, one.size])
    yield from ((start, file, to, size) for start, to, size in runs)


def _taken(plan: Plan, name: str) -> str:
    """What a tensor that stays as it is is called in the input."""
    return name if plan.taken is None else plan.taken[name]


def _copy(given: int, start: int, file: int, to: int, size: int) -> None:
    done = 0
    while done < size:
        copied = _copy_some(given, start + done, file, to + done, min(_CHUNK, size - done))
        if not copied:
            raise OSError(errno.EIO, "the input became shorter while it was read")
        done += copied


def _copy_some(given: int, start: int, file: int, to: int, size: int) -> int:
    """By the system itself where it does that between these two files."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(given, file, size, start, to)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
    return os.pwrite(file, os.pread(given, min(size, 1 << 20), start), to)


def _fill(folder: Folder, plan: Plan, mapped: Mapped, one: Stored) -> None:
    if one.name in plan.made:
        _fold(folder, plan.made[one.name], one, mapped)
    elif one.name in plan.filled:
        mapped.tensor(one).fill_(plan.filled[one.name])
    elif folder.is_pickled:
        mapped.tensor(one).copy_(folder.tensor(_taken(plan, one.name)))


def _fold(folder: Folder, made: Made, one: Stored, mapped: Mapped) -> None:
    sources = [folder.tensor(name) for name in made.sources]
    fit = Fit(made.name, one.dtype, made.shape)
    room = torch.empty(0, dtype=one.dtype)
    for axis, start, block in fold_blocks(made.recipe, sources, made.shape):
        if room.numel() < block.numel() and block.dtype != one.dtype:
            room = torch.empty(block.numel(), dtype=one.dtype)
        part = block if block.dtype == one.dtype else room[: block.numel()].view(block.shape).copy_(block)
        fit.add(block, part, axis, start)
        mapped.write(one, part, axis, start)
    fit.check()


def check_sources(folder: Folder, plan: Plan) -> None:
    """Every computed tensor has the shape and the dtype that its place in the files has.

    Raises:
        InputError: naming one that has not.
    """
    for name, made in plan.made.items():
        stored = folder.stored.get(name) if plan.taken is None else None
        if stored is not None and (stored.shape, stored.dtype) != (made.shape, made.recipe.dtype):
            raise InputError(f"{name} would change its shape or dtype, which a folder cannot hold")
