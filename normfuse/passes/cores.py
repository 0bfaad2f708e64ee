"""The core of a norm, left bare or written out with what follows it as operators behind it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import Node

from normfuse.analysis.plan import Maps
from normfuse.ir.canonical import respell, scaled, shifted
from normfuse.ir.emit import as_row_major
from normfuse.ir.region import Operands, region_of
from normfuse.ir.sizes import rank_of
from normfuse.ir.spec import NormSpec

__all__ = ["behind", "put_core", "unrounded", "write_out"]


def unrounded(core: NormSpec) -> NormSpec:
    """The core whose result is not rounded from the dtype of its sums yet."""
    return replace(core, scale_dtype=core.sum_dtype, out_dtype=core.sum_dtype)


def put_core(norm: Node, core: NormSpec) -> None:
    """Let a norm be ``core``, which has neither weight nor bias, and may have another size."""
    respell(norm, core, replace(region_of(norm).operands(norm), scale=None, shift=None))
    (result,) = region_of(norm).body.output_node().all_input_nodes
    norm.meta["val"] = result.meta["val"]


def behind(value: Node, spec: NormSpec, operands: Operands, result: torch.Tensor) -> Node:
    """What a norm with this core made of its core's value, laid out as ``result`` was."""
    graph = value.graph
    value = shifted(graph, spec, scaled(graph, spec, value, operands.scale), operands.shift)
    return as_row_major(graph, value, result)


def write_out(norm: Node, core: NormSpec, maps: Maps = ()) -> Node:
    """Let a norm be ``core``, with ``maps``, and then its own weight and bias, as operators behind it.

    Returns what all that read the norm read now.
    """
    region = region_of(norm)
    spec, operands, result = region.spec, region.operands(norm), norm.meta["val"]
    put_core(norm, unrounded(core))
    readers, value, axis = list(norm.users), norm, rank_of(norm) + spec.dims[0]
    with norm.graph.inserting_before(norm.next):
        for mapping in maps:
            value = mapping.emit(norm.graph, value, axis)
        value = behind(value, spec, operands, result)
    for reader in readers:
        reader.replace_input_with(norm, value)
    return value
