"""Weights standardised in forms that no description has are computed once; what jumps is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfuse
from tests.nn.training import distance

#: Two sums of 27 products in float64, by weights that are rounded once.
EXACT = 1e-13
#: The same in float32, through the variance of a group of 100 values.
FLOAT32 = 4e-6

Spelling = Callable[["Conv"], Tensor]


class Conv(nn.Conv2d):
    def __init__(self, spelling: Spelling) -> None:
        super().__init__(3, 8, 3)
        self.spelling, self.gain = spelling, nn.Parameter(torch.rand(8, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.spelling(self), self.bias)


def published(c: Conv) -> Tensor:
    """Weight standardization as its authors have it."""
    mean = c.weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    weight = c.weight - mean
    std = torch.sqrt(torch.var(weight.view(weight.size(0), -1), dim=1) + 1e-12).view(-1, 1, 1, 1) + 1e-5
    return weight / std.expand_as(weight)


def deviation(c: Conv) -> Tensor:
    weight = c.weight - c.weight.mean([1, 2, 3], keepdim=True)
    return weight / (weight.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)


def mean_last(c: Conv) -> Tensor:
    """Scaled standardization as ports of NFNets have it."""
    var, mean = torch.var_mean(c.weight, (1, 2, 3), keepdim=True)
    scale = torch.rsqrt(torch.max(var * 27, torch.tensor(1e-4))) * c.gain
    return c.weight * scale - mean * scale


def by_sizes(c: Conv) -> Tensor:
    """The same, with the fan-in as JAX has it: the product of an array of sizes."""
    var, mean = torch.var_mean(c.weight, (1, 2, 3), keepdim=True)
    fan_in = torch.prod(torch.tensor(c.weight.shape[1:]))
    scale = torch.rsqrt(torch.maximum(var * fan_in, torch.tensor(1e-4).to(var.device))) * c.gain
    return c.weight * scale - mean * scale


def by_fan_in(c: Conv) -> Tensor:
    weight = c.weight - c.weight.mean((1, 2, 3), keepdim=True)
    return c.gain * weight / (c.weight.std((1, 2, 3), keepdim=True) * 27**0.5 + 1e-5)


def length(c: Conv) -> Tensor:
    return c.gain * (c.weight + 1) / (torch.linalg.vector_norm(c.weight, dim=(1, 2, 3), keepdim=True) + 0.1)


SPELLINGS = {
    published: "weight_standardization", deviation: "weight_standardization",
    mean_last: "weight_standardization", by_fan_in: "weight_standardization", length: "l2_norm",
    by_sizes: "weight_standardization",
}  # fmt: skip


def network(spelling: Spelling) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Conv(spelling), nn.GroupNorm(2, 8)).eval()


def operators(program: torch.export.ExportedProgram) -> list[str]:
    return [str(n.target).split(".")[1] for n in program.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_it_is_a_constant_in_a_program(spelling: Spelling) -> None:
    model, x = network(spelling).double(), torch.randn(2, 3, 7, 6, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,))
    assert made.report.found == {SPELLINGS[spelling]: 1, "group_norm": 1}
    assert made.report.after == {"group_norm": 1}
    assert distance(made.module()(x), model(x)) <= EXACT
    assert operators(made.program) == ["conv2d", "group_norm"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_it_follows_its_weight_where_it_is_compiled(spelling: Spelling) -> None:
    model, x = network(spelling), torch.randn(2, 3, 7, 6)
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    with torch.no_grad():
        for _ in range(2):
            expected = copy.deepcopy(model).double()(x.double())
            assert distance(fast(x), expected) <= FLOAT32
            model[0].weight.add_(torch.randn_like(model[0].weight))
    assert normfuse.last_report(fast).after == {"group_norm": 1}


def test_in_training_it_is_computed_at_each_step() -> None:
    model, x = network(published), torch.randn(2, 3, 7, 6)
    twin = copy.deepcopy(model)
    torch.compile(model, backend="normfuse", options={"normfuse.inner": "aot_eager"})(
        x
    ).sin().sum().backward()
    twin(x).sin().sum().backward()
    assert distance(model[0].weight.grad, twin[0].weight.grad) <= FLOAT32
    (site,) = [s for s in normfuse.last_report().sites if s.kind == "weight_standardization"]
    assert site.refusal is not None
    assert site.refusal.code == "grad_enabled"


def ternary(c: Conv) -> Tensor:
    """A quantizer: in more precision its entries could round the other way."""
    scale = c.weight.abs().mean((1, 2, 3), keepdim=True) + 1e-5
    return (c.weight / scale).round().clamp(-1, 1) * scale


def undivided(c: Conv) -> Tensor:
    return c.weight - c.weight.mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("spelling", [ternary, undivided])
def test_other_arithmetic_on_weights_is_left(spelling: Spelling) -> None:
    model, x = network(spelling), torch.randn(2, 3, 7, 6)
    made = normfuse.rewrite(model, (x,))
    assert made.report.found == {"group_norm": 1}
    torch.testing.assert_close(made.module()(x), model(x), rtol=0, atol=0)
