"""Statistics of groups of channels are found however they are repeated, and other repetitions are left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normfuse

Spelling = Callable[[Tensor], Tensor]
GROUPS, TIMES = 4, 3


def split(x: Tensor) -> Tensor:
    return x.contiguous().view(*x.shape[:-1], GROUPS, TIMES)


def repeated(x: Tensor) -> Tensor:
    parts = split(x)
    mean = (parts * parts).mean(-1, keepdim=True).repeat(1, 1, 1, TIMES).view(x.shape)
    return x / torch.sqrt(mean + 1e-5)


def expanded(x: Tensor) -> Tensor:
    parts = split(x)
    mean = parts.pow(2).mean(-1, keepdim=True).expand(parts.shape).reshape(x.shape)
    return torch.rsqrt(1e-5 + mean) * x


def interleaved(x: Tensor) -> Tensor:
    parts = x.contiguous().reshape(*x.shape[:-1], GROUPS, TIMES)
    mean = (parts * parts).mean(dim=3, keepdim=False)
    mean = torch.repeat_interleave(mean, repeats=TIMES, dim=-1).contiguous().reshape(x.shape)
    return x / torch.sqrt(mean + 1e-5)


def expanded_as(x: Tensor) -> Tensor:
    parts = split(x)
    mean = parts.square().mean(-1, keepdim=True).expand_as(parts).flatten(-2)
    return x / (mean + 1e-5) ** 0.5


def published(x: Tensor) -> Tensor:
    """As the authors of power normalization have it: the axis of the mean is kept, and its entry repeated."""
    parts = split(x)
    mean = (parts * parts).mean(dim=3, keepdim=True)
    mean = torch.repeat_interleave(mean, repeats=TIMES, dim=-1).contiguous().view(x.shape)
    return x / torch.sqrt(mean + 1e-5)


class Model(nn.Module):
    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        return self.spelling(x).sigmoid()


@pytest.mark.parametrize("spelling", [repeated, expanded, interleaved, expanded_as, published])
def test_norms_over_groups_are_found(spelling: Spelling) -> None:
    model, x = Model(spelling).eval(), torch.randn(2, 5, GROUPS * TIMES)
    made = normfuse.rewrite(model, (x,))
    (site,) = made.report.sites
    assert (site.kind, site.spec["groups"], site.spec["eps"]) == ("rms_norm", GROUPS, 1e-5)
    found, wanted = made.module()(x), model(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert found.stride() == wanted.stride()


def tiled(x: Tensor) -> Tensor:
    """The statistics of all groups one after the other: a channel is divided by that of another group."""
    mean = split(x).pow(2).mean(-1).repeat(1, 1, TIMES)
    return x / torch.sqrt(mean + 1e-5)


def tiled_by_reshape(x: Tensor) -> Tensor:
    mean = split(x).pow(2).mean(-1, keepdim=True).transpose(-1, -2).repeat(1, 1, TIMES, 1).reshape(x.shape)
    return x / torch.sqrt(mean + 1e-5)


def interleaved_rows(x: Tensor) -> Tensor:
    """Repeated along the axis of groups: two statistics for four groups."""
    parts = split(x)
    mean = parts[..., :2, :].pow(2).mean(-1, keepdim=True).repeat_interleave(2, dim=-2)
    return x / torch.sqrt(mean.expand_as(parts).reshape(x.shape) + 1e-5)


def of_rows(x: Tensor) -> Tensor:
    """Repeated along another axis."""
    mean = x.pow(2).mean(1, keepdim=True).repeat(1, 5, 1)
    return x / torch.sqrt(mean + 1e-5)


def of_other_values(x: Tensor) -> Tensor:
    mean = split(x).pow(2).mean(-1, keepdim=True).repeat(1, 1, 1, TIMES).view(x.shape)
    return (x + 1) / torch.sqrt(mean + 1e-5)


def within_groups(x: Tensor) -> Tensor:
    """Each group has three statistics of its own, one after the other, twice."""
    parts = x.contiguous().view(*x.shape[:-1], 2, 6)
    mean = parts.pow(2)[..., :3].repeat(1, 1, 1, 2).view(x.shape)
    return x / torch.sqrt(mean + 1e-5)


def of_two_groups(x: Tensor) -> Tensor:
    """Two statistics for four groups."""
    mean = (split(x)[..., :2, :]).pow(2).mean(-1, keepdim=True).repeat(1, 1, 2, TIMES).view(x.shape)
    return x / torch.sqrt(mean + 1e-5)


def of_moved_values(x: Tensor) -> Tensor:
    """The quotient lies as the values do, in another order."""
    y = x.sigmoid().transpose(0, 1).contiguous().transpose(0, 1)
    mean = split(y).pow(2).mean(-1, keepdim=True).repeat(1, 1, 1, TIMES).view(x.shape)
    return (y / torch.sqrt(mean + 1e-5)).relu()


def written(x: Tensor) -> Tensor:
    parts = split(x)
    mean = parts.pow(2).mean(-1, keepdim=True).repeat(1, 1, 1, TIMES).view(x.shape)
    made = x / torch.sqrt(mean + 1e-5)
    kept = made.view(-1)
    made.mul_(2.0)
    return kept.view(x.shape) + made


def numerator(x: Tensor) -> Tensor:
    mean = split(x).pow(2).mean(-1, keepdim=True).repeat(1, 1, 1, TIMES).view(x.shape)
    return torch.sqrt(mean + 1e-5) / x


OTHERS = [
    tiled, tiled_by_reshape, interleaved_rows, of_rows, of_other_values, within_groups, of_two_groups,
    of_moved_values, numerator,
]  # fmt: skip


@pytest.mark.parametrize("spelling", OTHERS)
def test_other_repetitions_keep_their_values(spelling: Spelling) -> None:
    model, x = Model(spelling).eval(), torch.randn(2, 5, GROUPS * TIMES)
    made = normfuse.rewrite(model, (x,))
    assert [s for s in made.report.sites if s.kind == "rms_norm" and s.spec["groups"] == GROUPS] == []
    found, wanted = made.module()(x), model(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert found.stride() == wanted.stride()


def test_a_result_that_is_written_is_left() -> None:
    model, x = Model(written).eval(), torch.randn(2, 5, GROUPS * TIMES)
    made = normfuse.rewrite(model, (x,))
    torch.testing.assert_close(made.module()(x), model(x), rtol=0, atol=0)
