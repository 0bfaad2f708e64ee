"""What operators do that their schemas do not say, tried on real tensors."""

from __future__ import annotations

import pytest
import torch
from torch._ops import OpOverload

from normfuse.ir.calls import aten
from normfuse.ir.undeclared import NEW_MEMORY, RETURNS_INPUT, is_pure, may_return_input
from tests.analysis.view_search import lies_in_an_argument, operators, search, searched_apart

X = torch.rand(2, 3, 4)

#: Calls that return their input, or a view of it, without saying so.
VIEWS = {
    "a transposition": (aten.einsum.default, "bij->bji", [X]),
    "the diagonal of each matrix": (aten.einsum.default, "bii->bi", [torch.rand(2, 3, 3)]),
    "one tensor, broadcast": (aten.broadcast_tensors.default, [X]),
    "a grid": (aten.meshgrid.default, [X[0, 0], X[0, 1]]),
    "a grid by name": (aten.meshgrid.indexing, [X[0, 0], X[0, 1]], "ij"),
    "enough axes": (aten.atleast_3d.default, X),
    "enough axes of each": (aten.atleast_3d.Sequence, [X]),
    "a sum that adds nothing": (aten.sum_to_size.default, X, [2, 3, 4]),
    "a dense tensor": (aten.to_dense.default, X),
    "a cast by its old name": (aten._cast_Float.default, X),
    "a type like another's": (aten.type_as.default, X, X),
    "a product of one": (aten.cartesian_prod.default, [X[0, 0]]),
    "dropout in evaluation": (aten.dropout.default, X, 0.5, False),
    "dropout of channels in evaluation": (aten.feature_dropout.default, X, 0.5, False),
    "dropout for self-normalizing networks": (aten.alpha_dropout.default, X, 0.5, False),
    "real numbers, conjugated": (aten.conj_physical.default, X),
    "a reshape that is unsafe": (aten._unsafe_view.default, X, [6, 4]),
    "a split that is unsafe": (aten.unsafe_split.Tensor, X, 1),
    "parts that are unsafe": (aten.unsafe_split_with_sizes.default, X, [1, 1]),
    "chunks that are unsafe": (aten.unsafe_chunk.default, X, 2),
    "what is not quantized": (aten.dequantize.self, X),
    "what is lifted": (aten.lift.default, X),
    "a tensor set to another": (aten.set.source_Tensor, X, torch.rand(2)),
    "tensors of a flat one": (aten.unflatten_dense_tensors.default, X[0, 0], [torch.rand(4)]),
}  # fmt: skip

#: What random calls do not reach, each with nothing to do.
SPECIAL = {
    "conv1d": (aten.conv1d.default, X, torch.ones(3, 1, 1), None, [1], [0], [1], 3),
    "conv2d": (aten.conv2d.default, X, torch.ones(2, 2, 1, 1)),
    "conv3d": (aten.conv3d.default, X[None], torch.ones(1, 1, 1, 1, 1)[:, :, 0:1]),
    "conv_transpose1d": (aten.conv_transpose1d.default, X, torch.ones(3, 1, 1), None, [1], [0], [0], 3),
    "conv_transpose2d": (aten.conv_transpose2d.input, X, torch.ones(2, 2, 1, 1)),
    "conv_transpose3d": (aten.conv_transpose3d.input, X[None], torch.ones(1, 1, 1, 1, 1)),
    "layer_norm": (aten.layer_norm.default, X, [4]),
    "_scaled_dot_product_attention_math": (aten._scaled_dot_product_attention_math.default, X, X, X),
    "max_pool2d": (aten.max_pool2d.default, X, [1, 1]),
    "max_pool1d": (aten.max_pool1d.default, X, [1]),
    "nll_loss": (aten.nll_loss.default, X[0], torch.arange(3)),
    "nll_loss_nd": (aten.nll_loss_nd.default, X[0], torch.arange(3), None, 0),
    "bilinear": (aten.bilinear.default, X, X, torch.ones(1, 4, 4), None),
    "embedding_bag": (aten.embedding_bag.default, X[0], torch.arange(3), torch.arange(3)),
    "grid_sampler": (aten.grid_sampler.default, X[None], torch.zeros(1, 3, 4, 2), 0, 0, True),
    "max_pool3d": (aten.max_pool3d.default, X[None], [1, 1, 1]),
    "upsample_bilinear2d": (aten.upsample_bilinear2d.vec, X[None], [3, 4], False, None),
    "upsample_bicubic2d": (aten.upsample_bicubic2d.vec, X[None], [3, 4], False, None),
    "upsample_nearest3d": (aten.upsample_nearest3d.vec, X[None, None], [2, 3, 4], None),
    "upsample_trilinear3d": (aten.upsample_trilinear3d.vec, X[None, None], [2, 3, 4], False, None),
}  # fmt: skip


def given(target: OpOverload, *values: object) -> dict[str, object]:
    names = [a.name for a in target._schema.arguments]
    return dict(zip(names, values, strict=False))


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_that_is_not_declared_is_known(name: str) -> None:
    target, *values = VIEWS[name]
    assert lies_in_an_argument(target, given(target, *values))
    assert may_return_input(target)


def test_every_kernel_that_returns_its_input_is_among_them() -> None:
    assert {target for target, *_ in VIEWS.values()} >= RETURNS_INPUT


def _overloads() -> dict[str, list[OpOverload]]:
    found: dict[str, list[OpOverload]] = {name: [] for name in NEW_MEMORY}
    for target in operators():
        found.get(target._schema.name.removeprefix("aten::"), []).append(target)
    return found


def test_operators_that_make_new_memory_do() -> None:
    """In ten random calls of every overload, or in one by hand for those that random arguments seldom fit."""
    for name, overloads in _overloads().items():
        if name in SPECIAL:
            target, *values = SPECIAL[name]
            assert target in overloads
            assert not lies_in_an_argument(target, given(target, *values)), name
            continue
        found = [search(target, 60, enough=10) for target in overloads]
        assert sum(ran for ran, _ in found) > 0, f"{name} was never called"
        assert not any(views for _, views in found), name


#: Parts of PyTorch's own tests, and of tensors that no strided memory holds.
_NOT_FOR_MODELS = ("_test", "_foobar", "_nested")


@pytest.mark.slow
def test_no_other_operator_returns_a_view_unseen() -> None:
    """Every operator of ATen, in 100 random calls each: some 1,500 operators, of which a thousand run."""
    unknown = [
        target
        for target in operators()
        if not may_return_input(target)
        and not target._schema.name.removeprefix("aten::").startswith(_NOT_FOR_MODELS)
        and searched_apart(target, 100)
    ]
    assert unknown == []


def test_a_composite_operator_that_is_not_known_may_return_a_view() -> None:
    assert may_return_input(aten.rnn_tanh.input)
    assert not may_return_input(aten.mul.Tensor)


PURE = {
    "a product": (aten.mul.Tensor, True),
    "a view": (aten.view.default, True),
    "memory in another dtype": (aten.view.dtype, False),
    "memory by strides": (aten.as_strided.default, False),
    "dropout": (aten.dropout.default, False),
    "random numbers": (aten.rand_like.default, False),
    "a draw": (aten.bernoulli.default, False),
    "noise": (aten.normal.Tensor_float, False),
    "whatever is there": (aten.empty_like.default, False),
    "whatever is there, of some size": (aten.new_empty.default, False),
    "a collective": (torch.ops._c10d_functional.all_reduce.default, False),
}


@pytest.mark.parametrize("name", PURE)
def test_what_depends_on_its_operands_alone(name: str) -> None:
    target, pure = PURE[name]
    assert is_pure(target) is pure


@pytest.mark.parametrize("tag", [None, torch.Tag.pt2_compliant_tag, torch.Tag.pointwise])
def test_no_tag_says_that_a_custom_operator_is_pure(tag: torch.Tag | None) -> None:
    with torch.library._scoped_library("normfuse_test_pure", "DEF") as library:
        library.define("same(Tensor x) -> Tensor", tags=() if tag is None else (tag,))
        target = torch.ops.normfuse_test_pure.same.default
        assert not is_pure(target)
        assert may_return_input(target)
