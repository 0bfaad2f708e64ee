"""A weight folded in blocks is the weight folded as a whole, and no more than a block of it is held."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph

from normfuse.folding import Recipe
from normfuse.folding import blocks as module
from normfuse.folding.blocks import fold_blocks
from normfuse.folding.recipe import FOLD
from normfuse.ir.calls import aten
from normfuse.ir.emit import call, cast


def recipe(build, *sources):
    """What ``build`` makes of placeholders, as a map."""
    graph = Graph()
    nodes = []
    for i, source in enumerate(sources):
        nodes.append(graph.placeholder(f"source_{i}"))
        nodes[-1].meta["val"] = torch.empty_like(source, device="meta")
    result = build(graph, *nodes)
    for node in graph.nodes:
        if node.op == "call_function":
            node.meta[FOLD] = True
    graph.output(result)
    dtype = result.meta["val"].dtype
    return Recipe(graph, torch.nn.Module(), dtype, "key", "label"), tuple(result.meta["val"].shape)


def centre(axis):
    def build(graph, weight):
        wide = cast(graph, weight, torch.float32)
        mean = call(graph, aten.mean.dim, wide, [axis], True)
        return cast(graph, call(graph, aten.sub.Tensor, wide, mean), torch.bfloat16)

    return build


def scale(axis):
    def build(graph, weight, vector):
        shape = [1, 1]
        shape[axis] = -1
        along = call(graph, aten.reshape.default, call(graph, aten.reshape.default, vector, [-1]), shape)
        return call(graph, aten.mul.Tensor, weight, along)

    return build


def shifted(graph, weight, vector, bias):
    zeros = call(graph, aten.new_zeros.default, vector, [vector.meta["val"].shape[0]])
    shift = call(graph, aten.add.Tensor, zeros, vector)
    made = call(graph, aten.reshape.default, call(graph, aten.matmul.default, weight, shift), [-1])
    return call(graph, aten.add.Tensor, made, bias)


def shifted_columns(graph, weight, vector, bias):
    turned = call(graph, aten.permute.default, weight, [1, 0])
    return shifted(graph, turned, vector, bias)


WEIGHT = torch.randn(60, 40)
CASES = {
    "centre rows": (centre(0), (WEIGHT.bfloat16(),), 0),
    "centre columns": (centre(1), (WEIGHT.bfloat16(),), 0),
    "scale columns": (scale(1), (WEIGHT, torch.randn(40)), 0),
    "scale halves": (scale(1), (WEIGHT.bfloat16(), torch.randn(40).bfloat16()), 0),
    "scale rows": (scale(0), (WEIGHT, torch.randn(60)), 0),
    "shift": (shifted, (WEIGHT, torch.randn(40), torch.randn(60)), 0),
    "shift of columns": (shifted_columns, (WEIGHT, torch.randn(60), torch.randn(40)), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_are_parts_of_the_whole(case, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 500)
    build, sources, axis = CASES[case]
    made, shape = recipe(build, *sources)
    whole = made.compute(sources)
    result, sizes = torch.full(shape, torch.nan, dtype=whole.dtype), []
    for along, start, block in fold_blocks(made, sources, shape):
        assert along == axis
        assert block.dtype == (whole.dtype if case.startswith("scale") else torch.float64)
        sizes.append(block.numel())
        result.narrow(along, start, block.shape[along]).copy_(block)
    assert len(sizes) > 3
    assert max(sizes) <= 500
    if case.startswith("scale"):  # a product is rounded once, in whatever it is computed
        assert torch.equal(result, whole)
    # The blocks add up the same numbers in float64, perhaps in another order, and are rounded once.
    assert torch.allclose(result.double(), whole.double(), rtol=torch.finfo(whole.dtype).eps, atol=1e-12)


def test_small_weights_are_one_block():
    made, shape = recipe(centre(0), WEIGHT.bfloat16())
    ((axis, start, block),) = fold_blocks(made, [WEIGHT.bfloat16()], shape)
    assert (axis, start, tuple(block.shape)) == (0, 0, shape)


def test_what_cannot_be_cut_is_computed_as_a_whole(monkeypatch):
    """A mean over everything needs everything."""
    monkeypatch.setattr(module, "BLOCK", 500)

    def build(graph, weight):
        return call(graph, aten.sub.Tensor, weight, call(graph, aten.mean.dim, weight, [0, 1], True))

    made, shape = recipe(build, WEIGHT)
    ((_, _, block),) = fold_blocks(made, [WEIGHT], shape)
    assert torch.equal(block.float(), made.compute([WEIGHT]))
