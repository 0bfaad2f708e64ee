"""How many bytes a kernel of Inductor's program reads and writes, from what it indexes.

A region of a tensor counts once for reading and once for writing, however often the kernel comes back to it.
Of a tensor that a library or a kernel of ours is given as a view, the view counts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch._inductor.dependencies import Dep, MemoryDep
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import Layout
from torch.utils._sympy.functions import FloorDiv, Identity, ModularIndexing

__all__ = ["moved"]

#: Of a loop over rows so many are looked at, where all are alike.
_STEPS = 4


def moved(graph: GraphLowering, node: Any) -> int:
    """Of one node of the scheduler: a fused kernel, a library's, one of ours, or one of a call's results."""
    if node.is_extern():
        return _given(node.node) + _made(node.node)
    inner = {name for name in node.get_buffer_names() if not _is_read_elsewhere(graph, node, name)}
    return _regions(graph, node.read_writes.reads, inner) + _regions(graph, node.read_writes.writes, inner)


def _is_read_elsewhere(graph: GraphLowering, node: Any, name: str) -> bool:
    readers = {user.node for user in graph.scheduler.name_to_buf[name].users}
    return not readers <= set(node.get_nodes())


def _regions(graph: GraphLowering, deps: Iterable[Dep], inner: set[str]) -> int:
    regions, real = defaultdict[str, set[Any]](set), graph.scheduler.mutation_real_name
    for dep in deps:
        if dep.name not in inner:
            region = dep.normalize_with_stride_order() if isinstance(dep, MemoryDep) else dep
            regions[real.get(dep.name, dep.name)].add(region)
    return sum(_bytes_of(graph.get_buffer(name), found) for name, found in regions.items())


def _bytes_of(buffer: Any, regions: set[Any]) -> int:
    """Regions of loops that are plain are apart or the same; those that cut axes anew may overlap."""
    whole = math.prod(map(int, buffer.get_size()))
    touched, bent = 0, defaultdict[int, list[MemoryDep]](list)
    for one in regions:
        if not isinstance(one, MemoryDep) or one.is_indirect():
            touched += whole
        elif one.index.has(ModularIndexing, FloorDiv):
            bent[int(one.size[0])].append(one)
        else:
            touched += int(one.get_numel())
    touched += sum(_union(found, size) for size, found in bent.items())
    return min(touched, whole) * int(buffer.get_dtype().itemsize)


def _union(found: list[MemoryDep], size: int) -> int:
    """How many places are touched, if each of the ``size`` steps of the outer loop goes on where one ends."""
    steps = min(size, _STEPS)
    return len(torch.cat([_places(one, steps) for one in found]).unique()) * size // steps


def _places(one: MemoryDep, steps: int) -> torch.Tensor:
    sizes = [steps, *(int(size) for size in one.size[1:])]
    grid = torch.meshgrid(*map(torch.arange, sizes), indexing="ij")
    index = one.index.replace(Identity, lambda x: x)
    arithmetic = {"ModularIndexing": lambda x, by, size: x // by % size, "FloorDiv": lambda x, by: x // by}
    at: torch.Tensor = sympy.lambdify(one.var_names, index, modules=[arithmetic])(*grid)
    return at.flatten()


def _given(kernel: Any) -> int:
    """The results of a kernel of ours are among what it is given."""
    found = {}
    for value in kernel.inputs:
        if isinstance(layout := value.layout, Layout):
            place = (value.get_name(), str(layout.size), str(layout.stride), str(layout.offset))
            found[place] = _stored(layout)
    return sum(found.values())


def _made(kernel: Any) -> int:
    """Nothing where the results are parts that count by themselves, or are given."""
    return _stored(kernel.layout) if isinstance(kernel.layout, Layout) else 0


def _stored(layout: Layout) -> int:
    """Bytes of the values that lie in memory, those that are repeated counting once."""
    sizes = [int(s) for s, step in zip(layout.size, layout.stride, strict=True) if step != 0]
    return math.prod(sizes) * layout.dtype.itemsize
