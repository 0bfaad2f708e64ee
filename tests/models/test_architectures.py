"""Where the literature puts its norms: what is converted, and that the function stays the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import normfuse
from tests.models import architectures as a
from tests.situations.models import close, fast

#: Networks, how many of their norms are converted, how many there are, and why the others are not.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int, set[str]]] = {
    "mix_ln": (
        lambda: a.Network(a.PostNorm(), a.PostNorm(), a.PreNorm(), a.PreNorm()),
        3,
        5,
        {"post_norm", "raw_reader"},
    ),
    "peri_ln": (lambda: a.Network(a.PeriNorm(), a.PeriNorm()), 3, 5, {"post_norm"}),
    "layer_norm_scaling": (lambda: a.Network(*map(a.ScaledNorm, (1, 2, 3))), 4, 4, set()),
    "dit_adaln_zero": (lambda: a.Diffusion(a.AdaptiveZero(), a.AdaptiveZero()), 1, 3, {"channel_gate"}),
    "experts_masked": (lambda: a.Network(a.Experts("masked"), a.PreNorm()), 3, 3, set()),
    "experts_added": (lambda: a.Network(a.Experts("added"), a.PreNorm()), 3, 3, set()),
    "experts_stacked": (lambda: a.Network(a.Experts("stacked"), a.PreNorm()), 3, 3, set()),
}


def randomised(model: nn.Module) -> nn.Module:
    """Float64, evaluation mode, every weight random."""
    torch.manual_seed(0)
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_outcome(name: str) -> None:
    build, converted, found, codes = NETWORKS[name]
    model = randomised(build())
    x = torch.randn(4, 6, 8, dtype=torch.float64)
    with torch.no_grad(), torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        close(fast(model)(x), model(x), 1e-12)
    report = normfuse.last_report()
    assert (report.after.get("rms_norm", 0), sum(report.found.values()), report.graphs) == (
        converted,
        found,
        1,
    )
    assert {s.refusal.code for s in report.sites if s.refusal} == codes
