"""What divides values by a statistic of their own and is no norm is recorded, and nothing else is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normfuse
from tests.patterns import spellings
from tests.patterns.capturing import lifted
from tests.patterns.test_recognition import operands

#: Near misses that divide by a statistic of their own, and a part of what is said about them.
LISTED = {
    "variance without centring": "not exactly their mean",
    "pocket_tts": "not exactly their mean",
    "mean of another tensor": "not exactly their mean",
    "offset of another factor": "not exactly their mean",
    "centring without variance": "not exactly their standard deviation",
    "mean squared times N": "not exactly their standard deviation",
    "eps inside and outside": "no known norm has",
    "weight in the denominator": "no known norm has",
    "moments without centring": "no known norm has",
}
SILENT = (
    "statistics of another tensor", "half of the channels", "scale only", "whole tensor", "one-norm", "cube",
    "statistics pooling", "magnitude of another", "top-k gate", "standard score of the root",
    "linear with a bias", "mean over tokens",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(LISTED))
def test_it_is_listed_with_the_reason(name: str) -> None:
    (site,) = lifted(spellings.NEAR_MISSES[name], operands(torch.float32)).report.sites
    assert site.refusal is not None
    assert (site.kind, site.action, site.refusal.code) == ("unknown_norm", "kept", "unknown_form")
    assert LISTED[name] in site.refusal.message


@pytest.mark.parametrize("name", SILENT)
def test_nothing_is_listed(name: str) -> None:
    assert lifted(spellings.NEAR_MISSES[name], operands(torch.float32)).report.sites == []


PLAIN = {
    "softmax": lambda x, w: x.softmax(-1),
    "softmax by hand": lambda x, w: (e := (x - x.amax(-1, True)).exp()) / e.sum(-1, True),
    "pooling": lambda x, w: x.mean(1),
    "loss": lambda x, w: ((x - w) ** 2).mean(-1),
    "root of a loss": lambda x, w: ((x - w) ** 2).mean(-1).sqrt(),
    "attention": lambda x, w: F.scaled_dot_product_attention(x, x, x),
    "similarity": lambda x, w: (x * w).sum(-1) / (x.norm(dim=-1) * w.norm()),
    "gate": lambda x, w: x * x.mean(1, keepdim=True).sigmoid(),
    "energy": lambda x, w: x * x.pow(2).mean(-1, keepdim=True),
    "response": lambda x, w: x * ((g := x.norm(dim=1, keepdim=True)) / (g.mean(-1, keepdim=True) + 1e-6)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_what_is_no_norm_is_not_listed(name: str) -> None:
    assert lifted(PLAIN[name], operands(torch.float32)[:2]).report.sites == []


def test_a_norm_with_a_further_reader_of_its_root_is_one_norm() -> None:
    def function(x, w):
        root = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * root * w, (x + 1) * root

    (site,) = lifted(function, operands(torch.float32)[:2]).report.sites
    assert site.kind == "rms_norm"


def gated(x, w):
    return x * torch.sigmoid(w * x) / (x.var(-1, keepdim=True) + 1e-5).sqrt()


def gated_at_once(x, w):
    return F.silu(x) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-5) * w


def gated_by_groups(x, w):
    """EvoNorm-S0 as code in circulation has it: the deviation of groups, expanded and shaped back."""
    parts = x.view(x.size(0), 2, -1)
    deviation = (parts.var(-1, keepdim=True) + 1e-5).sqrt().expand_as(parts).reshape_as(x)
    return x * torch.sigmoid(w * x) / deviation


def repeated_groups(x, w):
    deviation = (x.unflatten(-1, (2, -1)).var(-1) + 1e-5).sqrt()
    return x * torch.sigmoid(w * x) / deviation.repeat_interleave(x.shape[-1] // 2, -1)


def larger_of_two(x, w):
    """EvoNorm-B0 in evaluation, the larger root by ``torch.max``."""
    own = x.var(1, keepdim=True, unbiased=False)
    return x / torch.max((w.square() + 1e-5).sqrt(), w * x + (own + 1e-5).sqrt())


def larger_of_the_batch(x, w):
    own, batch = x.var(1, keepdim=True, unbiased=False), x.var(0, keepdim=True, unbiased=False)
    return x / torch.max((batch + 1e-5).sqrt(), w * x + (own + 1e-5).sqrt()) * w


EVO = {
    gated: "S0", gated_at_once: "S0", gated_by_groups: "S0", repeated_groups: "S0",
    larger_of_two: "by the larger of a stored deviation",
    larger_of_the_batch: "by the larger of the deviation of the batch",
}  # fmt: skip


@pytest.mark.parametrize("function", EVO)
def test_evo_norms_are_named_however_the_statistic_is_spread(function) -> None:
    (site,) = lifted(function, operands(torch.float32)[:2]).report.sites
    assert (site.kind, site.action, site.refusal.code) == ("evo_norm", "kept", "nonlinear_norm")
    assert EVO[function] in site.refusal.message


def test_a_bounded_root_and_a_gate_behind_a_norm_are_no_evo_norms() -> None:
    def bounded(x, w):
        deviation = (x.var(-1, keepdim=True) + 1e-5).sqrt()
        return x / torch.maximum(deviation, torch.zeros_like(deviation)) * torch.sigmoid(w)

    (site,) = lifted(bounded, operands(torch.float32)[:2]).report.sites
    assert site.kind == "unknown_norm"


class Neighbours(nn.Module):
    """A LayerNorm and something like one read the same values."""

    def __init__(self) -> None:
        super().__init__()
        self.write, self.read = nn.Linear(8, 16), nn.Linear(16, 3)
        self.norm, self.odd = nn.LayerNorm(16), Odd()

    def forward(self, x):
        h = self.write(x)
        return self.read(self.norm(h)) + self.read(self.odd(h))


class Odd(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.var(-1, keepdim=True) + 1e-5)


def test_the_refusal_of_a_neighbour_names_it() -> None:
    made = normfuse.rewrite(Neighbours().eval(), (torch.randn(2, 5, 8),))
    assert made.report.found == {"layer_norm": 1, "unknown_norm": 1}
    native, odd = sorted(made.report.sites, key=lambda site: site.kind)
    assert odd.module == "odd"
    assert native.refusal is not None
    assert native.refusal.code == "raw_reader"
    assert "a norm that is not lifted (odd)" in native.refusal.message
    with pytest.raises(normfuse.ExpectationError, match="expected 0 unknown_norm"):
        normfuse.rewrite(Neighbours().eval(), (torch.randn(2, 5, 8),), expect={"unknown_norm": 0})


class ByMoments(nn.Module):
    """A LayerNorm by moments beside a native one, of values with a large mean."""

    def __init__(self, clamps: bool) -> None:
        super().__init__()
        self.write, self.read, self.norm = nn.Linear(8, 16), nn.Linear(16, 3), nn.LayerNorm(16)
        self.clamps = clamps

    def forward(self, x):
        h = self.write(x)
        mean = h.mean(-1, keepdim=True)
        variance = (h * h).mean(-1, keepdim=True) - mean * mean
        variance = variance.clamp_min(0) if self.clamps else variance
        shift = -mean * (inverse := torch.rsqrt(variance + 1e-5))
        return self.read(h * inverse + shift) + self.read(self.norm(h))


@pytest.mark.parametrize("clamps", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_norm_by_moments_becomes_more_exact(clamps: bool, offset: float) -> None:
    """With a large mean the moments cancel: the original may even take the root of a negative number.

    The changed weights have no mean, whatever the bias: some 100 roundings of 6e-8 are left.
    """
    torch.manual_seed(0)
    model, x = ByMoments(clamps).eval(), torch.randn(4, 5, 8)
    with torch.no_grad():
        model.write.bias += offset
    made = normfuse.rewrite(model, (x,), verify="sites")
    assert (made.report.found, made.report.after) == ({"layer_norm": 2}, {"rms_norm": 2})
    with torch.no_grad():
        original, found = model(x), made.module()(x)
        truth = model.double()(x.double())
    error, allowed = ((t.double() - truth).norm() for t in (found, original))
    assert error <= 1.5 * allowed or original.isnan().any()
    assert error <= 100 * 6e-8 * truth.norm()
