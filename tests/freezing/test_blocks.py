"""Products with weights in blocks: values for all sizes and orders; Inductor takes them where they win."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch._inductor.utils import run_and_get_code

import normfuse
from normfuse.freezing import fastest as measuring
from normfuse.freezing.blocks import blocks, packed_once
from normfuse.freezing.large_pages import Arena
from tests.freezing.test_library import Products

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="freezing needs MKL")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


WEIGHTS = {
    "by input": lambda inputs, outputs: torch.randn(inputs, outputs),
    "by output": lambda inputs, outputs: torch.randn(outputs, inputs).t(),
    "with gaps": lambda inputs, outputs: torch.randn(2 * inputs, 3 * outputs)[::2, ::3],
}
BIASES = {
    "none": lambda outputs: None,
    "whole": torch.randn,
    "with gaps": lambda outputs: torch.randn(2 * outputs)[::2],
    "one number": lambda outputs: torch.randn(1).expand(outputs),
}
DATA = {
    "by row": lambda rows, inputs: torch.randn(rows, inputs),
    "a part of rows": lambda rows, inputs: torch.randn(rows, 2 * inputs)[:, inputs:],
    "with gaps": lambda rows, inputs: torch.randn(3 * rows, 2 * inputs)[::3, ::2],
    "by input": lambda rows, inputs: torch.randn(inputs, rows).t(),
    "one number a row": lambda rows, inputs: torch.randn(rows, 1).expand(rows, inputs),
}


def check(data: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    operators = blocks()
    assert operators is not None
    made = operators.multiply(data, operators.pack(weight), bias, weight.shape[1])
    assert made.shape == (data.shape[0], weight.shape[1])
    exact = data.double() @ weight.double() + (0 if bias is None else bias.double())
    size = data.double().abs() @ weight.double().abs() + (0 if bias is None else bias.double().abs())
    # Each term is rounded at its product and at no more additions than there are terms.
    bound = (weight.shape[0] + 2) * 2**-24 * size
    if data.dtype == torch.bfloat16:  # and the sum once, to 8 bits
        bound += 2**-8 * (exact.abs() + bound)
    assert made.dtype == data.dtype
    assert bool(((made - exact).abs() <= bound).all())
    return made


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1, 1), (2, 2), (5, 7), (33, 40), (63, 64), (130, 100), (64, 9), (700, 1100)]
)
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 14, 15, 29, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes(dtype: torch.dtype, rows: int, inputs: int, outputs: int, threads: int) -> None:
    torch.manual_seed(inputs)
    shapes = (rows, inputs), (inputs, outputs), (outputs,)
    check(*(torch.randn(shape).to(dtype) for shape in shapes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("data", DATA)
def test_orders(data: str, weight: str, bias: str, rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made = DATA[data](rows, 200), WEIGHTS[weight](200, 41), BIASES[bias](41)
    check(*(None if one is None else cast(one, dtype) for one in made))


def cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same numbers, rounded, in the same order in memory."""
    whole = value.new_empty(value.untyped_storage().nbytes() // 4, dtype=dtype)
    made = whole.as_strided(value.shape, value.stride(), value.storage_offset())
    if 0 in made.stride():
        return value[..., :1].to(dtype).expand(value.shape)
    return made.copy_(value)


@pytest.mark.parametrize("rows", [279, 281, 563])
def test_many_rows(rows: int, threads: int) -> None:
    torch.manual_seed(0)
    check(torch.randn(rows, 193), torch.randn(193, 33), None)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(0, 4, 3), (3, 0, 5), (3, 4, 0), (1, 0, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    check(*(torch.randn(shape).to(dtype) for shape in ((rows, inputs), (inputs, outputs), (outputs,))))


def test_the_result_is_rounded_as_pytorch_rounds() -> None:
    torch.manual_seed(0)
    numbers = torch.cat((torch.randn(4000), torch.tensor([0.0, 1.0, 1e38, 3e38, 1e-39, float("inf")])))
    data, weight = (
        numbers.bfloat16()[:, None],
        torch.tensor([[1.0, -1.0, 1.00390625, 0.3, 1.5, 3.0]]).bfloat16(),
    )
    operators = blocks()
    assert operators is not None
    found = operators.multiply(data, operators.pack(weight), None, 6)
    # The product of two numbers of 8 bits is exact in float32.
    assert torch.equal(found, (data.float() * weight.float()).bfloat16())


def test_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    data, weight = torch.randn(300, 500), torch.randn(500, 40)
    whole = check(data, weight, None)
    for rows in (2, 13, 150):
        assert torch.equal(check(data[:rows], weight, None), whole[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_finite_stay_in_their_row(dtype: torch.dtype) -> None:
    data, weight = torch.randn(20, 30).to(dtype), torch.randn(30, 40).to(dtype)
    data[3, 4], data[7, 5], weight[:, 9] = float("nan"), float("inf"), 0.0
    operators = blocks()
    assert operators is not None
    made = operators.multiply(data, operators.pack(weight), None, 40)
    wanted = data @ weight
    assert torch.equal(made.isnan(), wanted.isnan())
    assert torch.equal(made.isinf(), wanted.isinf())


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_without_values(dtype: torch.dtype) -> None:
    operators = blocks()
    assert operators is not None
    weight = torch.randn(70, 45).to(dtype)
    packed = operators.pack(weight)
    for operator, given in (
        (operators.pack, (weight,)),
        (operators.multiply, (torch.randn(1, 70).to(dtype), packed, torch.randn(45).to(dtype), 45)),
        (operators.multiply, (torch.randn(7, 70).to(dtype), packed, None, 45)),
    ):
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("is_transposed", [True, False])
def test_inductor_takes_it_where_it_is_fastest(
    is_transposed: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"plain": 3.0, "mkl": 3.0, "onednn": 3.0, "blocks": 1.0}
    monkeypatch.setattr(measuring, "_measured", dict)
    monkeypatch.setattr(measuring, "_remember", lambda known: None)
    monkeypatch.setattr(measuring, "_measure", lambda *_: (figures, dict.fromkeys(figures, 1.0)))
    torch.manual_seed(0)
    model, x = Products().eval(), torch.randn(rows, 48)
    if is_transposed:
        model.up.weight.data = model.up.weight.data.t().contiguous().t()
    fast = torch.compile(model, backend="normfuse")
    with torch.no_grad():
        result, (code,) = run_and_get_code(fast, x)
        assert code.count("torch.ops.normfuse.multiply_blocks.default(") == 2
        assert "pack_in_blocks" not in code
        # Two sums of at most 96 products in float32, in any order: 96 * 2**-24, twice, with room for both.
        exact = torch.nn.Module.double(model)(x.double())
    assert float((result - exact).norm() / exact.norm()) < 4 * 96 * 2**-24


needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="Inductor packs bfloat16 for no library here"
)


@needs_bfloat16
@pytest.mark.parametrize(("rows", "onednn", "wanted"), [(1, 2.0, 2), (1, 0.5, 0), (9, 2.0, 0)])
def test_few_rows_in_bfloat16(rows: int, onednn: float, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"plain": 3.0, "onednn": onednn, "blocks": 1.0}
    monkeypatch.setattr(measuring, "_measured", dict)
    monkeypatch.setattr(measuring, "_remember", lambda known: None)
    monkeypatch.setattr(measuring, "_measure", lambda *_: (figures, dict.fromkeys(figures, 1.0)))
    torch.manual_seed(0)
    model, x = Products().bfloat16().eval(), torch.randn(rows, 48).bfloat16()
    fast = torch.compile(model, backend="normfuse")
    with torch.no_grad():
        result, (code,) = run_and_get_code(fast, x)
        assert code.count("torch.ops.normfuse.multiply_blocks.default(") == wanted
        exact = torch.nn.Module.double(model)(x.double())
    # What is between the two products, and the result, are rounded to 8 bits; a row of values that are spread
    # about zero reaches the second one by a sum of as many roundings, whose size is that of their root.
    assert float((result - exact).norm() / exact.norm()) < 4 * 2**-8


@needs_bfloat16
def test_products_in_bfloat16_are_measured() -> None:
    torch.manual_seed(0)
    seconds, errors = measuring._measure(2, torch.randn(300, 64).bfloat16(), is_cold=False)
    assert seconds.keys() == errors.keys() == {"plain", "onednn", "blocks"}
    # Sums in float32 and one rounding to 8 bits.
    assert errors["blocks"] < 2**-8


@pytest.mark.parametrize(("seconds", "wanted"), [(0.80, "blocks"), (0.90, "plain")])
def test_it_has_to_be_clearly_faster_for_one_row(seconds: float, wanted: str) -> None:
    figures = {"plain": 1.0, "mkl": 2.0, "onednn": 2.0, "blocks": seconds}
    assert measuring.best_of((figures, dict.fromkeys(figures, 1.0)), rows=1) == wanted


@pytest.mark.parametrize(("few", "wanted"), [(1.0, 1), (5.0, 0)])
def test_rows_that_change(few: float, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are as exact for any number of rows; the libraries are not asked, whatever their speed."""

    def found(rows: int, *_: object) -> measuring.Figures:
        seconds = {"plain": 3.0, "mkl": 0.1, "onednn": 0.1, "blocks": few if rows == 2 else 1.0}
        return seconds, dict.fromkeys(seconds, 1.0)

    monkeypatch.setattr(measuring, "_measured", dict)
    monkeypatch.setattr(measuring, "_remember", lambda known: None)
    monkeypatch.setattr(measuring, "_measure", found)
    torch.manual_seed(0)
    model = torch.nn.Linear(48, 96).eval()
    fast = torch.compile(model, backend="normfuse", dynamic=True)
    with torch.no_grad():
        _, (code,) = run_and_get_code(fast, torch.randn(30, 48))
        assert code.count("torch.ops.normfuse.multiply_blocks.default(") == wanted
        for rows in (2, 31, 300):
            x = torch.randn(rows, 48)
            exact = torch.nn.functional.linear(x.double(), model.weight.double(), model.bias.double())
            # A sum of 48 products and a bias in float32, in any order.
            assert float((fast(x) - exact).norm() / exact.norm()) < 49 * 2**-24


def held(entries: int) -> int:
    """How many memories of so many numbers in float32, or more, tensors have."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]
    found = [t.untyped_storage() for t in tensors if t.layout == torch.strided and not t.is_mkldnn]
    return len({one.data_ptr() for one in found if one.nbytes() >= 4 * entries})


@pytest.mark.parametrize("dynamic", [False, None])
def test_graphs_of_one_model_hold_what_is_packed_once(
    dynamic: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second graph would take MKL's product; what is held already is what it gets."""

    def found(rows: int, *_: object) -> measuring.Figures:
        seconds = {"plain": 3.0, "mkl": 2.0 if rows == 30 else 0.5, "onednn": 3.0, "blocks": 1.0}
        return seconds, dict.fromkeys(seconds, 1.0)

    monkeypatch.setattr(measuring, "_measured", dict)
    monkeypatch.setattr(measuring, "_remember", lambda known: None)
    monkeypatch.setattr(measuring, "_measure", found)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(173, 391), torch.nn.Linear(391, 173, bias=False)).eval()
    exact = copy.deepcopy(model).double()
    fast = torch.compile(model, backend="normfuse", dynamic=dynamic)
    before = held(173 * 391)
    sizes = list[int]()
    with torch.no_grad():
        for is_changed in (False, True):
            if is_changed:
                model[0].weight.mul_(2)
                exact[0].weight.mul_(2)
            for rows in (30, 30, 1, 1, 7, 7):
                x = torch.randn(rows, 173)
                wanted = exact(x.double())
                # Sums of 173 and 391 products in float32, in any order, and a bias.
                assert float((fast(x) - wanted).norm() / wanted.norm()) < 2 * (173 + 391 + 1) * 2**-24
                sizes.append(normfuse.last_report(fast).frozen_bytes)
            assert held(173 * 391) <= before + 2
    # The first call after a change is answered by the model itself.
    assert sizes[1::2] == 2 * [2 * 4 * 173 * 391, 0, 0]
    del model, fast
    torch._dynamo.reset()
    assert held(173 * 391) <= before


def test_a_graph_beside_one_that_packs_nothing_chooses_freely(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(rows: int, *_: object) -> measuring.Figures:
        seconds = {"plain": 1.0, "mkl": 3.0 if rows == 30 else 0.5, "onednn": 3.0, "blocks": 3.0}
        return seconds, dict.fromkeys(seconds, 1.0)

    monkeypatch.setattr(measuring, "_measured", dict)
    monkeypatch.setattr(measuring, "_remember", lambda known: None)
    monkeypatch.setattr(measuring, "_measure", found)
    fast = torch.compile(torch.nn.Linear(48, 96).eval(), backend="normfuse", dynamic=False)
    with torch.no_grad():
        codes = [run_and_get_code(fast, torch.randn(rows, 48))[1][0] for rows in (30, 7)]
    assert ["mkl._mkl_linear" in code for code in codes] == [False, True]


def test_equal_weights_are_packed_once() -> None:
    own = blocks()
    assert own is not None
    weight, known, arena = torch.randn(40, 50), dict[tuple[int, int], torch.Tensor](), Arena(0)
    key, first = packed_once(own, weight, known, arena)
    known[key] = first
    assert packed_once(own, weight.t().contiguous().t(), known, arena)[1] is first
    turned = weight[[1, 0, *range(2, 40)]]
    assert packed_once(own, turned, known, arena)[0] == key, "the same numbers in another order"
    assert packed_once(own, turned, known, arena)[1] is not first
    assert packed_once(own, weight + 1, known, arena)[0] != key
