"""What a rewrite saves at each call is counted from sizes, by norm and in sum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normfuse
from normfuse.report import Cost

ROWS, WIDTH = 6, 8
ENTRIES = ROWS * WIDTH
#: Of float32 values; a weight or bias of the norm.
VALUES, VECTOR = 4 * ENTRIES, 4 * WIDTH


def saved(model: nn.Module, x: torch.Tensor | None = None) -> normfuse.Report:
    given = torch.randn(ROWS, WIDTH) if x is None else x
    with torch.no_grad():
        return normfuse.explain(model.eval(), given)


def test_a_layer_norm_loses_its_mean_and_its_affine() -> None:
    report = saved(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)))
    (site,) = report.sites
    # The mean and its subtraction, the weight and the bias: one operation for each entry.
    assert site.saved == report.saved == Cost(4 * ENTRIES, 2 * VECTOR, 0)
    assert "at each call 192 operations, 64 bytes of memory traffic fewer (estimated from sizes)" in str(
        report
    )
    assert report.to_dict()["saved"] == {"operations": 4 * ENTRIES, "bytes": 2 * VECTOR, "kernels": 0}
    assert report.to_dict()["sites"][0]["saved"] == report.to_dict()["saved"]


def test_a_batch_norm_is_saved_as_a_whole() -> None:
    (site,) = saved(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))).sites
    assert site.saved == Cost(3 * ENTRIES, 2 * VALUES + 4 * VECTOR, 0)


def test_a_kept_norm_saves_nothing() -> None:
    report = saved(nn.Sequential(nn.ReLU(), nn.LayerNorm(WIDTH), nn.ReLU()))
    assert report.saved == Cost()
    assert "at each call" not in str(report)


def test_an_explicit_centring_is_counted_against_what_it_allows() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner = nn.Embedding(5, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(3))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.table(tokens)
            for norm in self.norms[:2]:
                x = x + self.inner(norm(x))
            return nn.functional.linear(self.norms[2](x), self.table.weight)

    report = saved(Tied(), torch.zeros(ROWS, dtype=torch.long))
    assert report.centrings == 1
    assert [site.saved for site in report.sites] == [Cost(2 * ENTRIES, 0, 0)] * 3
    assert report.saved == Cost(4 * ENTRIES, -2 * VALUES, -1)
    line = "at each call 192 operations fewer and 384 bytes of memory traffic, 1 kernel more"
    assert f"{line} (estimated from sizes)" in str(report)


def test_graphs_add_up() -> None:
    report, other = normfuse.Report(spent=Cost(1, 2, 3)), normfuse.Report(spent=Cost(10, 20, 30))
    report.merge(other)
    assert report.saved == Cost(-11, -22, -33)


@pytest.mark.parametrize(("basis", "operations"), [("drop_last", 3), ("orthonormal", 4)])
def test_a_crms_norm_adds_up_what_it_does_not_store(basis: str, operations: int) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3))
    rewritten = normfuse.rewrite(
        model.eval(), (torch.randn(ROWS, WIDTH),), target="crms_norm", crms_basis=basis
    )
    (site,) = rewritten.report.sites
    before, each = 7 * ENTRIES, 3 + (4 - operations)
    assert site.saved.operations == before - each * ROWS * (WIDTH - 1)
