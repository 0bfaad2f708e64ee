"""The product of one row: its values in every order of the weight, and that Inductor takes it if it wins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from normfuse.freezing import fastest as measuring
from normfuse.freezing.one_row import one_row
from tests.freezing.test_library import Products

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="freezing needs MKL")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", ["by input", "by output", "with gaps"])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1, 1), (2, 2), (5, 7), (33, 40), (63, 64), (130, 100), (64, 9), (700, 1100)]
)
def test_values(inputs: int, outputs: int, order: str, bias: bool, threads: int) -> None:
    operators = one_row()
    assert operators is not None
    torch.manual_seed(inputs)
    weight = {
        "by input": torch.randn(inputs, outputs),
        "by output": torch.randn(outputs, inputs).t(),
        "with gaps": torch.randn(2 * inputs, 3 * outputs)[::2, ::3],
    }[order]
    packed = operators.pack(weight)
    shift = torch.randn(outputs) if bias else None
    wide = torch.randn(1, 2 * inputs)
    for data in (
        wide[:, :inputs].contiguous(),
        wide[:, inputs:],
        wide[:, ::2],
        wide[:, :1].expand(1, inputs),
    ):
        made = operators.multiply(data, packed, shift, outputs)
        assert made.shape == (1, outputs)
        exact = data.double() @ weight.double() + (0 if shift is None else shift.double())
        size = data.double().abs() @ weight.double().abs() + (0 if shift is None else shift.double().abs())
        # Each term is rounded at its product and at no more additions than there are terms.
        assert bool(((made - exact).abs() <= (inputs + 2) * 2**-24 * size).all())


def test_shapes_without_values() -> None:
    operators = one_row()
    assert operators is not None
    weight = torch.randn(70, 45)
    packed = operators.pack(weight)
    for operator, given in (
        (operators.pack, (weight,)),
        (operators.multiply, (torch.randn(1, 70), packed, torch.randn(45), 45)),
    ):
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))


def test_large_weights_lie_on_large_pages() -> None:
    operators = one_row()
    assert operators is not None
    weight = torch.randn(1024, 1024)
    packed = operators.pack(weight)
    assert packed.data_ptr() % (1 << 21) == 0
    data = torch.randn(1, 1024)
    made = operators.multiply(data, packed, None, 1024)
    torch.testing.assert_close(
        made.double(), data.double() @ weight.double(), rtol=0, atol=1026 * 2**-24 * 5000
    )


@pytest.mark.parametrize("is_transposed", [True, False])
def test_inductor_takes_it_where_it_is_fastest(is_transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"plain": 3.0, "mkl": 3.0, "onednn": 3.0, "one_row": 1.0}
    monkeypatch.setattr(measuring, "_measured", dict)
    monkeypatch.setattr(measuring, "_remember", lambda known: None)
    monkeypatch.setattr(measuring, "_measure", lambda *_: (figures, dict.fromkeys(figures, 1.0)))
    torch.manual_seed(0)
    model, x = Products().eval(), torch.randn(1, 48)
    if is_transposed:
        model.up.weight.data = model.up.weight.data.t().contiguous().t()
    fast = torch.compile(model, backend="normfuse")
    with torch.no_grad():
        result, (code,) = run_and_get_code(fast, x)
        assert code.count("torch.ops.normfuse.one_row.default(") == 2
        assert "pack_for_one_row" not in code
        # Two sums of at most 96 products in float32, in any order: 96 * 2**-24, twice, with room for both.
        exact = torch.nn.Module.double(model)(x.double())
    assert float((result - exact).norm() / exact.norm()) < 4 * 96 * 2**-24


def test_it_is_measured_for_one_row_only() -> None:
    weight = torch.randn(48, 96)
    assert "one_row" in measuring._measure(1, weight, is_cold=False)[0]
    assert "one_row" not in measuring._measure(2, weight, is_cold=False)[0]


@pytest.mark.parametrize(("seconds", "wanted"), [(0.80, "one_row"), (0.90, "plain")])
def test_it_has_to_be_clearly_faster(seconds: float, wanted: str) -> None:
    figures = {"plain": 1.0, "mkl": 2.0, "onednn": 2.0, "one_row": seconds}
    assert measuring.best_of((figures, dict.fromkeys(figures, 1.0)), rows=1) == wanted
