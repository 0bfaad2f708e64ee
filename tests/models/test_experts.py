"""Experts of ``transformers``, whose product in most dtypes is an operator of that library."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normfuse
from normfuse.analysis.operator_table import ROWS

moe = pytest.importorskip("transformers.integrations.moe")
pytestmark = pytest.mark.models
OFFSETS = torch.tensor([2, 2, 5], dtype=torch.int32)


def test_every_operator_that_is_known_by_name_exists() -> None:
    for name in (target for target in ROWS if isinstance(target, str)):
        space, operator = name.split("::")
        assert getattr(getattr(torch.ops, space), operator).default.name() == name


class Experts(nn.Module):
    """Tokens through one of three experts each, between norms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.before, self.after = nn.Linear(6, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down = nn.Parameter(torch.randn(3, 8, 12)), nn.Parameter(torch.randn(3, 8, 12))
        self.leave = nn.Linear(8, 6)
        for norm in (self.before, self.after):
            nn.init.normal_(norm.weight, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.enter(x)
        product = torch.ops.transformers.grouped_mm_fallback
        inner = product(self.before(h), self.up, OFFSETS).relu()
        result: torch.Tensor = self.leave(self.after(h + product(inner, self.down.mT, OFFSETS)))
        return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_experts_take_centrings_and_weights_of_norms(dtype: torch.dtype) -> None:
    model, x = Experts().to(dtype).eval(), torch.randn(5, 6, dtype=dtype)
    nn.init.zeros_(model.before.bias)
    made = normfuse.rewrite(model, (x,), verify="off")
    assert made.report.after == {"rms_norm": 2}
    assert normfuse.verify(model, made, (x,)).ok
    if dtype == torch.float64:
        torch.testing.assert_close(made.module()(x), model(x), rtol=1e-12, atol=1e-12)
        assert made.program.state_dict["down"].mean(1).abs().max() < 1e-15


def test_the_experts_take_the_weight_of_a_norm_without_a_bias() -> None:
    model, x = Experts().double().eval(), torch.randn(5, 6, dtype=torch.float64)
    model.before = nn.RMSNorm(8, eps=1e-5, dtype=torch.float64)
    nn.init.normal_(model.before.weight, 1.0)
    made = normfuse.rewrite(model, (x,), verify="off")
    (site,) = [s for s in made.report.sites if s.module == "before"]
    assert "fold_scale" in site.rules
    torch.testing.assert_close(made.module()(x), model(x), rtol=1e-12, atol=1e-12)
