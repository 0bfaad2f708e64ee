"""A weight folded in blocks is the weight folded as a whole, and no more than a block of it is held."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.fx import Graph

from normfuse.folding import Recipe, whole
from normfuse.folding import blocks as module
from normfuse.folding.blocks import fold_blocks
from normfuse.folding.precision import fits
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


@pytest.mark.parametrize("case", CASES)
def test_a_weight_of_a_model_in_memory_is_made_in_blocks(case, monkeypatch):
    """Each lies as it is to lie, and is what is made of the whole."""
    build, sources, _ = CASES[case]
    made, shape = recipe(build, *sources)
    made = replace(made, stride=torch.empty(shape).t().contiguous().t().stride())
    computed = made.compute(sources)
    monkeypatch.setattr(module, "BLOCK", 500)
    monkeypatch.setattr(whole, "BLOCK", 500)
    monkeypatch.setattr(Recipe, "compute", lambda *_: pytest.fail("computed as a whole"))
    found = whole.folded(made, sources)
    assert (found.dtype, found.stride()) == (computed.dtype, computed.stride())
    assert torch.allclose(found.double(), computed.double(), rtol=torch.finfo(found.dtype).eps, atol=1e-12)


@pytest.mark.parametrize("part", [500, 1 << 18])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 1e39, -1e39, 70000.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_entry_that_a_dtype_cannot_hold_is_found_in_any_block(dtype, bad, part, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", part)
    monkeypatch.setattr(whole, "BLOCK", part)
    made, _ = recipe(scale(1), WEIGHT.double(), torch.ones(40).double())
    for place in ((0, 0), (59, 39), (31, 7)):
        weight = WEIGHT.double() + 1
        weight[place] = bad
        expected = bool(weight.to(dtype).isfinite().all())
        assert whole.can_hold(made, [weight, torch.ones(40).double()], dtype) == expected
    assert fits(torch.empty(0, 3), dtype)


def test_what_a_model_computes_itself_is_not_cut(monkeypatch):
    made, _ = recipe(scale(1), WEIGHT, torch.randn(40))
    made = replace(made, stride=(40, 1))
    next(n for n in made.body.nodes if n.op == "call_function").meta.clear()
    monkeypatch.setattr(whole, "BLOCK", 500)
    monkeypatch.setattr(whole, "fold_blocks", lambda *_: pytest.fail("cut"))
    whole.folded(made, [WEIGHT, torch.ones(40)])


def test_a_source_that_holds_the_folded_weight_bit_by_bit_is_taken_as_it_is(monkeypatch):
    """The weight is computed once, and a second time only to tell how far a source is from it."""
    computed = []
    plain = Recipe.value
    monkeypatch.setattr(Recipe, "value", lambda *given: computed.append(given) or plain(*given))
    made, _ = recipe(scale(1), WEIGHT, torch.ones(40))
    found, is_source = whole.fold(made, [WEIGHT, torch.ones(40)])
    assert is_source
    assert found.data_ptr() == WEIGHT.data_ptr()
    assert not computed
    near = torch.full((40,), 1 + torch.finfo(torch.float32).eps)
    assert not whole.fold(made, [WEIGHT, near])[1]
    assert computed
