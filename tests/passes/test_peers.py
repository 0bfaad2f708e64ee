"""Cases in which other tools fold batch norm wrongly or fail; here the answer is right in each.

torch.fx's ``fuse`` forgets other calls of a convolution and folds a linear of three axes whenever two
sizes agree; Inductor's ``efficient_conv_bn_eval`` does the latter and fails on grouped transposed
convolutions; optimum.fx forgets to scale the convolution's own bias.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

import normfuse
from tests.passes.affine_cases import image, normal, randomised

EXACT = 1e-13


class Shared(nn.Module):
    """A convolution that a norm and something else read."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(norms))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return sum((norm(h) for norm in self.norms), h if len(self.norms) == 1 else torch.zeros(()))


class Twice(nn.Module):
    """A convolution that is called twice, with a norm behind one of the calls or one behind each."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        self.second = nn.BatchNorm2d(6) if norms == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.conv(x)) + self.second(self.conv(x * 2))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.conv(x), self.norm.running_mean, self.norm.running_var, eps=1e-2)


def linear(width: int, **options: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 6), nn.BatchNorm1d(6, **options))


def transposed(groups: int) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=groups), nn.BatchNorm2d(4))


#: What is built, its input, and how many norms stay.
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "a convolution read by a norm and a sum": (lambda: Shared(1), image(), 0),
    "a convolution read by two norms": (lambda: Shared(2), image(), 2),
    "a convolution called with and without a norm": (lambda: Twice(1), image(), 0),
    "a convolution called with two norms": (lambda: Twice(2), image(), 0),
    "a linear of three axes, sizes equal": (lambda: linear(6), normal(3, 6, 6), 1),
    "a linear of three axes, sizes different": (lambda: linear(5), normal(3, 6, 5), 1),
    "a linear of two axes without affine": (lambda: linear(5, affine=False), normal(4, 5), 0),
    "a functional norm": (Functional, image(), 0),
    "a transposed convolution": (lambda: transposed(1), image(), 0),
    "a transposed convolution in groups": (lambda: transposed(2), image(), 0),
    "a convolution with a bias": (
        lambda: nn.Sequential(nn.Conv2d(6, 4, 3, bias=True), nn.BatchNorm2d(4)), image(), 0,
    ),
    "a convolution with a bias, no affine": (
        lambda: nn.Sequential(nn.Conv2d(6, 4, 3, bias=True), nn.BatchNorm2d(4, affine=False)), image(), 0,
    ),
    "a norm ahead of a convolution that pads": (
        lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)), image(), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_right(name: str) -> None:
    build, x, left = CASES[name]
    model = randomised(build())
    with torch.no_grad():
        expected = model(x)
        made = normfuse.rewrite(model, (x,))
        options = {"normfuse.inner": "eager"}
        fast = torch.compile(model, backend=normfuse.normfuse_backend, options=options)
        for found in (made.module()(x), fast(x)):
            assert ((found - expected).norm() / expected.norm()).item() <= EXACT
    for report in (made.report, normfuse.last_report()):
        assert report.after.get("batch_norm", 0) == left


HARD = [
    "a convolution called with and without a norm",
    "a convolution called with two norms",
    "a linear of three axes, sizes equal",
]


@pytest.mark.parametrize("name", HARD)
def test_the_cases_are_hard(name: str) -> None:
    """When torch.fx gets one right, that case has done its work."""
    build, x, _ = CASES[name]
    model = randomised(build())
    with torch.no_grad():
        wrong = fuse(copy.deepcopy(model))(x)
    assert (wrong - model(x)).abs().max() > 0.1
