"""Stored statistics with which a norm is left alone, each by its own reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normfuse
from normfuse.capture.exported import program_of
from normfuse.options import Options
from normfuse.passes.pipeline import run_pipeline

pytestmark = pytest.mark.rounding

X = torch.randn(2, 4, 5, 5)


class Written(nn.Module):
    """A batch norm in arithmetic: what updates such statistics raises their version counters."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, variance = (v[:, None, None] for v in (self.norm.running_mean, self.norm.running_var))
        return (x - mean) / torch.sqrt(variance + self.norm.eps)


class Unasked(nn.BatchNorm2d):
    """Calls the operator itself: the module's function refuses an eps of 0 in PyTorch 2.11."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics = (self.running_mean, self.running_var, False, 0.1, self.eps, False)
        return torch.batch_norm(x, self.weight, self.bias, *statistics)


def codes(norm: nn.Module, gain: float = 1.0) -> list[str]:
    """Why the norm behind a convolution stays when it is compiled; it multiplies by at most ``gain``.

    Both ways to compute it make at most 40 roundings of no more than what the convolution can reach.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3), norm, nn.MaxPool2d(2)).eval()
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    with torch.no_grad():
        reach = model[0].weight.abs().flatten(1).sum(1).max() * X.abs().max() + model[0].bias.abs().max()
        bound = 40 * torch.finfo(X.dtype).eps * float(reach) * gain
        torch.testing.assert_close(fast(X), model(X), rtol=0.0, atol=bound, equal_nan=True)
    return [s.refusal.code if s.refusal else "" for s in normfuse.last_report().sites]


@pytest.mark.parametrize(
    ("variance", "eps", "code"),
    [(0.0, 1e-5, ""), (-1e-6, 1e-5, "bad_statistics"), (0.0, 0.0, "bad_statistics")],
)
def test_variances_that_are_none(variance: float, eps: float, code: str) -> None:
    norm = Unasked(4, eps=eps)
    assert norm.running_var is not None
    norm.running_var[1] = variance
    assert codes(norm, gain=eps**-0.5 if eps else 1.0) == [code]


def test_a_dead_channel_in_float32_is_no_reason() -> None:
    """Training with weight decay leaves weights of 1e-40 behind; the whole norm vanishes all the same."""
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight[2] = 1e-40
    assert codes(norm) == [""]


@pytest.mark.parametrize(("written", "code"), [(False, "statistics_untracked"), (True, "")])
def test_statistics_that_a_kernel_updates_have_to_be_watched(
    written: bool, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device whose memory cannot be compared at each call."""
    monkeypatch.setattr("normfuse.passes.stored_values.can_watch", lambda *_: False)
    norm = nn.BatchNorm2d(4, affine=False)
    assert codes(Written(norm) if written else norm) == [code]


def test_the_reason_of_a_weight_that_no_dtype_holds() -> None:
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.fill_(1e38)
        assert norm.running_var is not None
        norm.running_var.fill_(1e-6)
    assert codes(norm) == ["overflow"]


#: A network, and what weights of another model did not meet that share its graph.
DOUBTED = {
    "overflow": nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)),
    "cancellation": nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2)),
}


@pytest.mark.parametrize("code", DOUBTED)
@pytest.mark.parametrize("doubts", [False, True])
def test_what_other_weights_did_not_meet_is_a_reason(code: str, doubts: bool) -> None:
    program = program_of(torch.export.export(DOUBTED[code].eval(), (X,)))
    if doubts:
        program.doubted = frozenset({("norm_0", code)})
    (site,) = run_pipeline(program, Options())[0].sites
    assert (site.refusal.code if site.refusal else "") == (code if doubts else "")
