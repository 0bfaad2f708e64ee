"""The product of one row: its values in every order of the weight, and that Inductor takes it if it wins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from normfuse.freezing import fastest as measuring
from normfuse.freezing.one_row import product_of_one_row
from tests.freezing.test_library import Products

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="freezing needs MKL")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", ["by input", "by output"])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 2), (5, 7), (33, 40), (17, 100), (64, 9), (700, 1100)])
def test_values(inputs: int, outputs: int, order: str, bias: bool, threads: int) -> None:
    torch.manual_seed(inputs)
    weight = torch.randn(inputs, outputs) if order == "by input" else torch.randn(outputs, inputs).t()
    operator = product_of_one_row(weight)
    assert operator is not None
    shift = torch.randn(outputs) if bias else None
    wide = torch.randn(1, 2 * inputs)
    for data in (
        wide[:, :inputs].contiguous(),
        wide[:, inputs:],
        wide[:, ::2],
        wide[:, :inputs].expand(1, -1),
    ):
        made = operator(data, weight, shift)
        assert made.shape == (1, outputs)
        exact = data.double() @ weight.double() + (0 if shift is None else shift.double())
        size = data.double().abs() @ weight.double().abs() + (0 if shift is None else shift.double().abs())
        # Each term is rounded at its product and at no more additions than there are terms.
        assert bool(((made - exact).abs() <= (inputs + 2) * 2**-24 * size).all())


@pytest.mark.parametrize(
    "weight",
    [torch.randn(8, 8).double(), torch.randn(8, 16)[:, ::2], torch.randn(8, 1), torch.randn(8, 9)[:, :8]],
    ids=["dtype", "gaps", "one column", "padded rows"],
)
def test_a_weight_that_lies_otherwise_is_left(weight: torch.Tensor) -> None:
    assert product_of_one_row(weight) is None


@pytest.mark.parametrize("is_transposed", [True, False])
def test_inductor_takes_it_where_it_is_fastest(is_transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"plain": 3.0, "mkl": 3.0, "onednn": 3.0, "one_row": 1.0}
    monkeypatch.setattr(measuring, "_measured", dict)
    monkeypatch.setattr(measuring, "_remember", lambda known: None)
    monkeypatch.setattr(measuring, "_measure", lambda rows, weight: (figures, dict.fromkeys(figures, 1.0)))
    torch.manual_seed(0)
    model, x = Products().eval(), torch.randn(1, 48)
    if is_transposed:
        model.up.weight.data = model.up.weight.data.t().contiguous().t()
    fast = torch.compile(model, backend="normfuse")
    with torch.no_grad():
        result, (code,) = run_and_get_code(fast, x)
        assert code.count("torch.ops.normfuse.one_row.default(") == 2
        # Two sums of at most 96 products in float32, in any order: 96 * 2**-24, twice, with room for both.
        exact = torch.nn.Module.double(model)(x.double())
    assert float((result - exact).norm() / exact.norm()) < 4 * 96 * 2**-24


def test_it_is_measured_for_one_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(48, 96)
    assert "one_row" in measuring._measure(1, weight)[0]
    assert "one_row" not in measuring._measure(2, weight)[0]
