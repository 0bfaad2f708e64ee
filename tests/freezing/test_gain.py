"""``explain`` says what constant weights are worth, from the time of each product by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normfuse
from normfuse.freezing import gain

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="needs both"
)


class Net(nn.Module):
    """A convolution, two products of equal sizes and one of another size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, groups=1)
        self.same = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).mean((2, 3))
        for layer in self.same:
            x = layer(x).relu()
        return self.head(x)


def test_every_product_counts_and_equal_ones_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []

    def figures(rows: int, weight: torch.Tensor, total: int) -> tuple[dict[str, float], dict[str, float]]:
        sizes.append((rows, *weight.shape, total))
        return {"plain": 8.0, "mkl": 2.0, "onednn": 1.0}, {"plain": 1.0, "mkl": 1.0, "onednn": 9.0}

    monkeypatch.setattr(gain, "figures", figures)
    monkeypatch.setattr(gain, "_seconds_of_convolution", lambda node, bound: (100.0, 50.0))
    with torch.no_grad():
        report = normfuse.explain(Net().eval(), torch.randn(5, 3, 6, 6))
    weights = 4 * (3 * 8 * 9 + 8 * 8 + 8 * 8 + 8 * 4)
    assert sorted(sizes) == [(5, 8, 4, weights), (5, 8, 8, weights)]
    assert report.products == (100.0 + 3 * 8.0, 50.0 + 3 * 2.0)
    assert "products and convolutions then take 45% of their time" in str(report)
    assert report.to_dict()["seconds_of_products"] == report.products


@pytest.mark.parametrize(
    "model",
    [
        Net(),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, groups=4, stride=2, bias=False)),
        nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.Conv2d(3, 3, 1, dilation=2, padding=1)),
    ],
)
def test_it_is_measured(model: nn.Module) -> None:
    with torch.no_grad():
        report = normfuse.explain(model.eval(), torch.randn(2, 3, 6, 6))
    assert report.products is not None
    plain, frozen = report.products
    assert 0 < frozen <= plain


def test_nothing_is_said_of_other_dtypes_and_of_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        assert normfuse.explain(Net().eval().bfloat16(), x.bfloat16()).products is None
        monkeypatch.setattr(gain, "_seconds", lambda product: 1 / 0)
        report = normfuse.explain(Net().eval(), x)
    assert report.products is None
    assert "products and convolutions then" not in str(report)
