"""Norms that are spelled alike share one body, and only those."""

from __future__ import annotations

import pytest
import torch

from normfuse.ir import norms_in
from tests.patterns.capturing import lifted


def rms(x, eps=1e-6, power=2):
    return x * torch.rsqrt(x.pow(power).mean(-1, keepdim=True) + eps)


def bodies(function, *inputs):
    regions = [region for _, region in norms_in(lifted(function, inputs).program.gm)]
    assert len(regions) == 2
    return [region.body for region in regions]


def test_equal_spellings_share_a_body() -> None:
    first, second = bodies(lambda x, w: rms(rms(x) @ w), torch.randn(3, 8), torch.randn(8, 8))
    assert first is second


@pytest.mark.parametrize(
    ("second", "shape"),
    [
        (lambda x: rms(x, 1e-5), (8, 8)),
        (lambda x: rms(x, power=2.0), (8, 8)),
        (lambda x: rms(x), (8, 4)),
        (lambda x: rms(x.double()), (8, 8)),
        (lambda x: rms(x.mT), (8, 3)),
        (lambda x: torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * x, (8, 8)),
    ],
)
def test_other_numbers_types_sizes_or_orders_do_not(second, shape) -> None:
    first, other = bodies(lambda x, w: second(rms(x) @ w), torch.randn(3, 8), torch.randn(shape))
    assert first is not other


def test_one_source_with_two_roles() -> None:
    """The input is also the weight: the body has an input for each."""

    def function(x, w):
        return torch.nn.functional.layer_norm(w, (8,), w) + torch.nn.functional.layer_norm(x, (8,), w)

    x, w = torch.randn(8), torch.randn(8)
    work = lifted(function, (x, w))
    assert torch.equal(work.program.gm(x, w), function(x, w))
