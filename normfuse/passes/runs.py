"""Weights of grouped operators: the channels of all groups on one axis, and back.

A grouped convolution's weight holds, along its first axis, one run for each group; the channels of a
group are numbered along another axis. ``[G * A, B, ...] -> [A, G * B, ...]`` puts them all on axis 1.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from normfuse.analysis.contraction import Reading
from normfuse.analysis.plan import Leaf
from normfuse.ir.calls import aten
from normfuse.ir.emit import call
from normfuse.ir.sizes import is_row_major, shape_of, tensor_of

__all__ = ["as_it_lay", "as_runs", "laid_like", "times_shift"]


def as_runs(graph: Graph, weight: Node, groups: int) -> Node:
    """The channels of all groups on axis 1."""
    if groups == 1:
        return weight
    first, second, *rest = shape_of(weight) or ()
    made = call(graph, aten.reshape.default, weight, [groups, first // groups, second, *rest])
    made = call(graph, aten.transpose.int, made, 0, 1)
    return call(graph, aten.reshape.default, made, [first // groups, groups * second, *rest])


def as_it_lay(graph: Graph, weight: Node, leaf: Leaf) -> Node:
    """What :func:`as_runs` did, undone."""
    if leaf.groups > 1:
        first, second, *rest = shape_of(leaf.node) or ()
        runs = [first // leaf.groups, leaf.groups, second, *rest]
        weight = call(graph, aten.reshape.default, weight, runs)
        weight = call(graph, aten.transpose.int, weight, 0, 1)
        weight = call(graph, aten.reshape.default, weight, [first, second, *rest])
    return laid_like(graph, weight, leaf.node)


def laid_like(graph: Graph, made: Node, weight: Node) -> Node:
    """A value that lies in memory as a weight does, by which convolutions choose how their results lie."""
    found, wanted = tensor_of(made), tensor_of(weight)
    if found is None or wanted is None or found.stride() == wanted.stride():
        return made
    strides = wanted.stride()
    order = sorted(range(wanted.dim()), key=lambda axis: -strides[axis])
    if found.shape != wanted.shape and is_row_major(found.permute(order)):
        return made
    inverse = [order.index(axis) for axis in range(wanted.dim())]
    made = call(graph, aten.permute.default, made, order)
    # ``contiguous`` would leave the stride of an axis of size 1, by which convolutions choose as well.
    made = call(graph, aten.clone.default, made, memory_format=torch.contiguous_format)
    return call(graph, aten.permute.default, made, inverse)


def times_shift(graph: Graph, weight: Node, shift: Node, read: Reading) -> Node:
    """``W t`` for a weight in the dtype of the shift, in the sizes that a bias has."""
    if read.summed:
        weight = call(graph, aten.sum.dim_IntList, weight, list(read.summed))
    left = [axis for axis in range(len(read.weight.letters)) if axis not in read.summed]
    order = [left.index(axis) for axis in (*read.kept, read.axis)]
    if order != sorted(order):
        weight = call(graph, aten.permute.default, weight, order)
    if read.groups > 1:
        out, inner = shape_of(weight) or ()
        weight = call(graph, aten.reshape.default, weight, [read.groups, out // read.groups, inner])
        shift = call(graph, aten.reshape.default, shift, [read.groups, inner, 1])
    made = call(graph, aten.matmul.default, weight, shift)
    return call(graph, aten.reshape.default, made, list(read.shape))
