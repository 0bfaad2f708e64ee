"""Narrow values that are exact are not centred in their narrow dtype."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normfuse

pytestmark = pytest.mark.rounding

D = 64


class Wide(nn.LayerNorm):
    """Takes narrow values, computes and returns float32."""

    def __init__(self) -> None:
        super().__init__(D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float())


class Read(nn.Module):
    """Two norms of one value, which is made by ``run``."""

    def __init__(self, run, narrow=torch.bfloat16) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(20, D), nn.Linear(D, D)
        self.to(narrow)
        self.p, self.wide = nn.Parameter(torch.randn(5, D).to(narrow) + 1), nn.Linear(D, D)
        self.first, self.second, self.run = Wide(), Wide(), run

    def forward(self, *args):
        h = self.run(self, *args)
        return self.first(h), self.second(h * 2)


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype)


GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(3, 5, D, generator=GENERATOR).to(torch.bfloat16) + 2
IDS = torch.randint(0, 20, (3, 5), generator=GENERATOR)
IMAGE = torch.randn(2, 8, 9, 9, generator=GENERATOR)


def widely(ids: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, D) * ids[..., None]


EXACT = {
    "from outside": (lambda s, x: x, X),
    "a view of what came from outside": (lambda s, x: x.mT.contiguous().mT, X),
    "rows of a table": (lambda s, ids: s.table(ids), IDS),
    "rows and a parameter, added widely": (lambda s, ids: s.table(ids).float() + s.p.float(), IDS),
    "rows, added to what is wide": (lambda s, ids: s.table(ids) + s.wide(widely(ids)), IDS),
    "rows, from which what is wide is taken": (lambda s, ids: s.table(ids) - s.wide(widely(ids)), IDS),
    "rows, joined with what is wide": (
        lambda s, ids: torch.cat([s.table(ids), s.wide(widely(ids))], 1),
        IDS,
    ),
    "rows, or what is wide": (
        lambda s, ids: torch.where(ids[..., None] > 9, s.table(ids), s.wide(widely(ids))),
        IDS,
    ),
    "beside what was computed": (lambda s, x: torch.cat([s.p.expand(3, 5, D), s.linear(x)], 1), X),
}


@pytest.mark.parametrize("name", EXACT)
def test_no_precision_is_lost(name: str) -> None:
    torch.manual_seed(0)
    run, x = EXACT[name]
    model = Read(run).eval()
    made = normfuse.rewrite(model, (x,), verify="off")
    verdict = normfuse.verify(model, made, (x,))
    assert verdict.ok, str(verdict)
    assert verdict.error_ratio <= 1.5


def test_float16_has_more_digits_than_bfloat16() -> None:
    """Both take two bytes, and the second one's values are exact in the first."""
    torch.manual_seed(0)
    table, norm = nn.Embedding(20, D).to(torch.bfloat16), nn.LayerNorm(D).half()
    model = nn.Sequential(table, Cast(torch.float16), norm).eval()
    with torch.no_grad():
        table.weight += 3
    made = normfuse.rewrite(model, (IDS,), verify="off")
    assert made.report.after == {"layer_norm": 1}
    assert normfuse.verify(model, made, (IDS,)).ok


def test_what_was_computed_in_the_narrow_dtype_is_converted() -> None:
    torch.manual_seed(0)
    model = Read(lambda s, x: s.linear(x)).eval()
    made = normfuse.rewrite(model, (X,), verify="off")
    assert made.report.after == {"rms_norm": 2}
    assert normfuse.verify(model, made, (X,)).ok


def test_what_was_computed_in_the_narrow_dtype_may_meet_what_is_wide() -> None:
    """The cast is one of the stream's operators and no part of a norm."""
    torch.manual_seed(0)
    other = nn.Linear(D, D)
    model = Read(lambda s, x: s.linear(x).float() + other(x.float())).eval()
    made = normfuse.rewrite(model, (X,), verify="off")
    assert (made.report.after, made.report.centrings) == ({"rms_norm": 2}, 0)
    assert normfuse.verify(model, made, (X,)).ok


def test_the_reason_is_named() -> None:
    model = Read(lambda s, ids: s.table(ids)).eval()
    report = normfuse.rewrite(model, (IDS,), verify="off").report
    assert [s.refusal.code for s in report.sites if s.refusal] == ["narrow_values"] * 2


class Stored(nn.Module):
    """A float32 batch norm whose shift is large, beside bfloat16 weights."""

    def __init__(self, run) -> None:
        super().__init__()
        self.conv, self.table = nn.Conv2d(8, 8, 3).to(torch.bfloat16), nn.Embedding(20, 8).to(torch.bfloat16)
        self.norm, self.rows, self.run = nn.BatchNorm2d(8), nn.BatchNorm1d(8), run
        self.wide = nn.Conv2d(8, 8, 3)
        for norm in (self.norm, self.rows):
            nn.init.normal_(norm.bias, 3.0)
            norm.running_mean.normal_()

    def forward(self, x):
        return self.run(self, x)


def of_both(join):
    """Joins a narrow value and a wide one."""
    return lambda s, x: torch.relu(s.norm(join(s.conv(x), s.wide(x.float()))))


STORED = {
    "behind a sum that widens": (of_both(torch.add), IMAGE.to(torch.bfloat16)),
    "behind a mean that widens": (
        lambda s, x: torch.relu(s.rows(s.conv(x).mean((2, 3), dtype=torch.float32))),
        IMAGE.to(torch.bfloat16),
    ),
    "behind values that are joined": (
        lambda s, x: torch.relu(s.norm(torch.cat([s.conv(x)[:, :4], s.wide(x.float())[:, :4]], 1))),
        IMAGE.to(torch.bfloat16),
    ),
    "behind a convolution": (lambda s, x: torch.relu(s.norm(s.conv(x).float())), IMAGE.to(torch.bfloat16)),
    "behind a table": (lambda s, ids: torch.tanh(s.rows(s.table(ids).float().mT)), IDS),
    "before a convolution": (lambda s, x: s.conv(s.norm(torch.relu(x)).to(torch.bfloat16)), IMAGE),
}


@pytest.mark.parametrize("name", STORED)
def test_stored_norms_are_not_folded_across_a_change_of_precision(name: str) -> None:
    torch.manual_seed(0)
    run, x = STORED[name]
    model = Stored(run).eval()
    made = normfuse.rewrite(model, (x,), verify="off")
    (site,) = made.report.sites
    assert "narrow" in site.refusal.message or "round" in site.refusal.message
    with torch.no_grad():
        assert torch.equal(made.module()(x), model(x))
