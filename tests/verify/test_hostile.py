"""The library of hostile inputs: each is what its name says, in every dtype."""

from __future__ import annotations

import pytest
import torch

from normfuse.verify.hostile import GENERATORS, RESIZING, hostile_inputs

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def made(name, dtype, shape=(4, 3, 16)):
    like = torch.ones(shape, dtype=dtype)
    value = {**GENERATORS, **RESIZING}[name](like, torch.Generator().manual_seed(0))
    return value.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GENERATORS)
def test_shape_and_dtype_are_kept(name, dtype):
    for shape in ((4, 3, 16), (5,), (), (0, 3)):
        value = made(name, dtype, shape)
        assert value.shape == shape
        assert value.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_is_what_its_name_says(dtype):
    info = torch.finfo(dtype)
    wide = made("large mean", dtype).double()
    assert (wide - 1000).abs().max() <= max(0.01, 1000 * info.eps)
    assert made("constant rows", dtype).double().std(-1).max() == 0
    assert made("constant rows", dtype).double().std(0).min() > 0
    tiny = made("denormals", dtype).double()
    assert 0 < tiny.abs().max() < info.smallest_normal
    assert made("1e30", dtype).isfinite().all()
    assert made("1e30", dtype).double().abs().max() > min(1e30, info.max / 64)
    assert not made("zeros", dtype).any()
    assert made("inf", dtype).isinf().any()
    assert made("nan", dtype).isnan().any()
    assert not made("nan", dtype)[2:].isnan().any()


def test_other_batch_sizes():
    inputs = [torch.randn(4, 3), torch.arange(4), 2, None]
    sets = dict(hostile_inputs(inputs, resize=True))
    assert [v.shape[0] for v in sets["one row"][:2]] == [1, 1]
    assert [v.shape[0] for v in sets["zero batch"][:2]] == [0, 0]
    assert sets["zero batch"][2:] == [2, None]
    assert set(dict(hostile_inputs(inputs))) == set(GENERATORS)


def test_integers_are_drawn_from_those_that_occur():
    ids, mask = torch.tensor([[3, 7], [7, 9]]), torch.tensor([True, False])
    for _, (x, found, kept) in hostile_inputs([torch.randn(2), ids, mask]):
        assert x.shape == (2,)
        assert set(found.flatten().tolist()) <= {3, 7, 9}
        assert torch.equal(kept, mask)


def test_without_floating_inputs_there_is_one_set():
    ((name, (ids,)),) = hostile_inputs([torch.tensor([1, 2, 3])])
    assert name == "other integers"
    assert set(ids.tolist()) <= {1, 2, 3}


def test_sets_are_reproducible_and_inputs_stay():
    given = [torch.ones(2, 8)]
    first, second = dict(hostile_inputs(given, seed=3)), dict(hostile_inputs(given, seed=3))
    assert all(torch.equal(a[0].nan_to_num(), second[n][0].nan_to_num()) for n, a in first.items())
    assert torch.equal(given[0], torch.ones(2, 8))


def test_integers_with_a_bound_use_the_whole_table():
    ids, mask, other = torch.tensor([[3, 7], [7, 9]]), torch.ones(2), torch.tensor([1, 2])
    sets = [dict(hostile_inputs([mask, ids, other], seed, bounds=[None, 50, None])) for seed in range(9)]
    seen = torch.stack([given["zeros"][1] for given in sets])
    assert seen.min() >= 0
    assert 9 < seen.max() < 50
    assert sets[0]["first rows only"][1].tolist() == [[0, 0], [0, 0]]
    assert sets[0]["last rows only"][1].tolist() == [[49, 49], [49, 49]]
    for given in sets:
        assert all(set(values[2].tolist()) <= {1, 2} for values in given.values())
        assert all(torch.equal(given[f"{end} rows only"][0], mask) for end in ("first", "last"))
