"""Products with a constant weight that is stored in blocks of outputs: as exact as MKL's, and often faster.

A product of one row, which a step that decodes one token consists of, is bound by memory. Its weight is read
once, from the first byte to the last, in large pages where the system has them, and several short sums run at
once, so that no addition is waited for. Of several rows a tile is multiplied with a block, and all its sums
stay in registers. A sum ends after 192 terms, 64 for one row, and is added to those before it: so the result
is as exact as MKL's, or more. It does not depend on the number of rows, unless that is one.

In bfloat16 each row is multiplied by itself, sums are in float32, and the result is rounded once.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import torch

from normfuse.errors import cause
from normfuse.freezing.large_pages import Arena
from normfuse.inductor_compat import compiled_library

__all__ = ["Blocks", "Packed", "blocks", "packed_once"]

log = logging.getLogger("normfuse")

#: So many outputs' weights lie side by side.
_BLOCK = 32


Key = tuple[int, int]
"""The size of a packed weight, and a sum over its bits."""

Packed = dict[Key, torch.Tensor]
"""Weights in blocks."""


class Blocks(NamedTuple):
    """The operators of such a product; all tensors are in float32, or all in bfloat16.

    ``pack`` stores a weight ``[in, out]`` in blocks. ``multiply`` takes data ``[rows, in]``, what was packed,
    a bias ``[out]`` or None, and the number ``out``, and makes ``[rows, out]``.
    """

    pack: torch._ops.OpOverload
    multiply: torch._ops.OpOverload


@cache
def blocks() -> Blocks | None:
    """The two operators; None where they cannot be compiled."""
    try:
        compiled_library(files("normfuse.freezing").joinpath("blocks.cpp").read_text())
    except Exception as error:
        log.info("products are left to the libraries: %s", cause(error))
        return None
    torch.library.register_fake("normfuse::pack_in_blocks", _packed)
    torch.library.register_fake("normfuse::multiply_blocks", _made)
    return Blocks(torch.ops.normfuse.pack_in_blocks.default, torch.ops.normfuse.multiply_blocks.default)


def packed_once(own: Blocks, weight: torch.Tensor, known: Packed, arena: Arena) -> tuple[Key, torch.Tensor]:
    """The key of a weight ``[in, out]``, and it in blocks: one of ``known`` where the numbers are equal.

    Another one is kept in ``arena``.
    """
    packed: torch.Tensor = own.pack(weight)
    bits = packed.view(torch.int16)
    key = packed.numel(), int(bits.sum(dtype=torch.int64))
    if key in known and known[key].dtype == weight.dtype and torch.equal(known[key].view(torch.int16), bits):
        return key, known[key]
    return key, arena.keep(packed)


def _packed(weight: torch.Tensor) -> torch.Tensor:
    inputs, outputs = weight.shape
    return weight.new_empty((outputs + _BLOCK - 1) // _BLOCK * _BLOCK * inputs)


def _made(data: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, outputs: int) -> torch.Tensor:
    return data.new_empty((data.shape[0], outputs))
