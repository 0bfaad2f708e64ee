"""Estimated times: of each operator by its definition, and what the report makes of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normfuse
from normfuse.analysis.time_share import time_of
from normfuse.capture.exported import program_of
from normfuse.report import Report, Site
from tests.backends.networks import prenorm

F = nn.functional
OPERATIONS_PER_BYTE = 8


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def last_time(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> float | None:
    program = torch.export.export(Calls(function), tuple(torch.zeros(s) for s in shapes))
    *_, last = (n for n in program_of(program).gm.graph.nodes if n.op == "call_function")
    return time_of(last)


@pytest.mark.parametrize(
    ("function", "shapes", "operations"),
    [
        (F.linear, [(64, 512), (256, 512)], 2 * 64 * 512 * 256),
        (torch.matmul, [(4, 128, 256), (4, 256, 128)], 2 * 4 * 128 * 256 * 128),
        (torch.bmm, [(4, 128, 256), (4, 256, 128)], 2 * 4 * 128 * 256 * 128),
        (torch.addmm, [(512,), (256, 512), (512, 512)], 2 * 256 * 512 * 512),
        (lambda x, w: F.conv2d(x, w, padding=1), [(1, 64, 9, 9), (64, 64, 3, 3)], 2 * 64 * 81 * 64 * 9),
        (lambda x, w: F.conv2d(x, w, groups=2), [(1, 512, 9, 9), (512, 256, 1, 1)], 2 * 512 * 81 * 256),
        (F.conv_transpose2d, [(1, 64, 32, 32), (64, 32, 3, 3)], 2 * 64 * 32 * 32 * 32 * 9),
        (lambda x, w: torch.einsum("bij,bjk->bik", x, w), [(2, 99, 99), (2, 99, 99)], 2 * 2 * 99 * 99 * 99),
        (F.scaled_dot_product_attention, [(1, 8, 256, 64)] * 3, 2 * 2 * 8 * 256 * 256 * 64),
    ],
)  # fmt: skip
def test_where_arithmetic_takes_longest(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]], operations: int
) -> None:
    assert last_time(function, *shapes) == operations / OPERATIONS_PER_BYTE


@pytest.mark.parametrize(
    ("function", "shapes", "traffic"),
    [
        (F.linear, [(1, 512), (256, 512)], 4 * (512 + 256 * 512 + 256)),
        (torch.relu, [(64, 512)], 4 * 64 * 512),
        (lambda x: x.view(-1), [(64, 512)], 0),
        (lambda x: x.transpose(0, 1), [(64, 512)], 0),
    ],
)
def test_where_memory_does(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]], traffic: int
) -> None:
    assert last_time(function, *shapes) == traffic


def test_the_report_sums_up_what_changed() -> None:
    report = normfuse.rewrite(prenorm(dtype=torch.float32), (torch.zeros(4, 8),), verify="off").report
    assert [site.time for site in report.sites] == [2 * 4 * 4 * 16] * 3
    assert report.time is not None
    assert report.changed_share == 3 * 2 * 4 * 4 * 16 / report.time
    assert str(report).splitlines()[-1].startswith("about ")
    assert report.to_dict()["changed_share_of_time"] == report.changed_share
    kept = normfuse.rewrite(prenorm(dtype=torch.float32), (torch.zeros(4, 8),), only=[]).report
    assert str(kept).splitlines()[-1] == "nothing to gain in speed here (estimated from sizes)"


def test_what_is_not_known_makes_no_estimate() -> None:
    @torch.library.custom_op("normfuse_tests::unknown", mutates_args=())
    def unknown(x: Tensor) -> Tensor:
        return x.clone()

    unknown.register_fake(torch.empty_like)
    model = nn.Sequential(prenorm(dtype=torch.float32), Calls(unknown)).eval()
    report = normfuse.rewrite(model, (torch.zeros(4, 8),), verify="off").report
    assert report.found == {"layer_norm": 3}
    assert (report.time, report.changed_share) == (None, None)
    assert "of the time" not in str(report)


def test_reports_of_several_graphs_add_up() -> None:
    def one(time: float | None, changed: float) -> Report:
        site = Site("layer_norm", {}, "", "", "", action="converted", time=changed)
        return Report([site], graphs=1, time=time)

    whole = Report()
    for part in (one(60.0, 1.0), one(40.0, 1.0)):
        whole.merge(part)
    assert whole.changed_share == 0.02
    whole.merge(one(1e6, 0.0))
    last = str(whole).splitlines()[-1]
    assert (
        last
        == "nothing to gain in speed here: about 0.0% of the time was in what changed (estimated from sizes)"
    )
    whole.merge(one(None, 0.0))
    assert whole.changed_share is None
