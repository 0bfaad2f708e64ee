"""The head of a safetensors file: which tensors it holds, and where their bytes are.

8 bytes: length of the head | the head, JSON | the bytes of the tensors, without gaps
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from normfuse.errors import InputError
from normfuse.folding.shards import check_name

__all__ = ["DTYPES", "Head", "Stored", "head_bytes", "read_head"]

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: The format allows no longer head.
_LONGEST = 100_000_000
#: No model has so many tensors in a file; transformers looks at each in more ways than one.
_MOST = 1 << 18
#: Sizes beyond it PyTorch does not count.
_LARGEST = 2**63 - 1
#: The tensors start at a multiple of it, so that their entries are aligned in a mapped file.
_ALIGNMENT = 8


@dataclass(frozen=True)
class Stored:
    """One tensor: ``start`` and ``size`` are bytes from the beginning of its file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Head:
    """The tensors of a file in the order of their bytes, and the text that goes with them."""

    tensors: tuple[Stored, ...]
    metadata: dict[str, str]


def read_head(file: Path) -> Head:
    """The head of a file whose length fits to it.

    Raises:
        InputError: for a file that is missing, truncated, damaged, or no safetensors file.
    """
    try:
        whole = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(_LONGEST, whole - 8):
                raise InputError(f"{file} is truncated, or no safetensors file; copy or download it again")
            held = json.loads(opened.read(length).decode("utf-8"))
        return _head(held, 8 + length, whole)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{file} is damaged, or no safetensors file: {error}") from error
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is damaged, or no safetensors file: its head has another form") from error


def _head(held: Any, start: int, whole: int) -> Head:
    if len(held) > _MOST:
        raise ValueError(f"it holds {len(held):,} tensors, and {_MOST:,} are the most that are read")
    metadata = held.pop("__metadata__", None) or {}
    tensors = sorted(
        (_stored(name, one, start) for name, one in held.items()), key=lambda t: (t.start, t.size)
    )
    end = start
    for one in tensors:
        if one.start != end:
            raise ValueError(f"the bytes of {one.name} overlap others, or leave a gap")
        end += one.size
    if end != whole:
        raise ValueError(f"it has {whole} bytes, and its head says {end}")
    return Head(tuple(tensors), {str(k): str(v) for k, v in metadata.items()})


def _stored(name: str, one: Mapping[str, Any], start: int) -> Stored:
    check_name(name)
    if one["dtype"] not in DTYPES:
        raise ValueError(f"{name} has the dtype {str(one['dtype'])[:20]}, which is not supported")
    dtype, shape = DTYPES[one["dtype"]], tuple(one["shape"])
    begin, end = one["data_offsets"]
    if not all(type(n) is int and 0 <= n <= _LARGEST for n in (*shape, begin, end)):
        raise ValueError(f"{name} has a size that is no count")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {end - begin} bytes, which its shape does not explain")
    return Stored(name, dtype, shape, start + begin, end - begin)


def head_bytes(
    tensors: Sequence[tuple[str, torch.dtype, Sequence[int]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[Stored]]:
    """The head of a file that holds these tensors in this order, and where each of them goes."""
    made: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end, sizes = 0, list[int]()
    for name, dtype, shape in tensors:
        sizes.append(math.prod(shape) * dtype.itemsize)
        made[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + sizes[-1]]}
        end += sizes[-1]
    text = json.dumps(made, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start, placed = 8 + len(text), list[Stored]()
    for (name, dtype, shape), size in zip(tensors, sizes, strict=True):
        placed.append(Stored(name, dtype, tuple(shape), start, size))
        start += size
    return len(text).to_bytes(8, "little") + text, placed
