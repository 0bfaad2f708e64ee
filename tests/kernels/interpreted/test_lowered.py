"""Compiled models whose norms are kernels, under the interpreter, against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import normfuse
from normfuse.backends import inner
from normfuse.passes import pipeline


class Block(nn.Module):
    """A pre-norm block with a layer norm, an RMSNorm, and the sums before them."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(12), nn.RMSNorm(12), nn.LayerNorm(12)])
        self.linears = nn.ModuleList([nn.Linear(12, 12) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = x + linear(norm(x)).tanh()
        return self.norms[0](x)


@pytest.mark.parametrize("trains", [False, True])
def test_compiled_models(trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter reads memory, so nothing can trace a kernel, or say what it makes of values without any.
    monkeypatch.setattr(pipeline, "_observers", lambda given: [given] if given else [])
    monkeypatch.setattr(inner, "run_inner", lambda gm, *rest: gm.forward)
    torch.manual_seed(0)
    model, x = Block(), torch.randn(2, 3, 12)
    exact, eager = copy.deepcopy(model).double(), copy.deepcopy(model)
    options = {"normfuse.lower": "triton", "normfuse.inner": "aot_eager"}
    fast = torch.compile(model, backend="normfuse", options=options)
    with torch.set_grad_enabled(trains):
        found, plain, wanted = fast(x), eager(x), exact(x.double())
    assert {site.lowering for site in normfuse.last_report(fast).sites} == {"triton"}
    # A few sums of 12 numbers in a row, each rounded: 8 layers of 12 units of 2**-24.
    assert float((found - wanted).norm() / wanted.norm()) < 8 * 12 * 2**-24
    if not trains:
        return
    for value in (found, plain, wanted):
        value.square().sum().backward()
    for name, parameter in exact.named_parameters():
        made, other = model.get_parameter(name).grad, eager.get_parameter(name).grad
        off, usual = (float((one - parameter.grad).norm()) for one in (made, other))
        assert off < max(8 * usual, 100 * 2**-24 * float(parameter.grad.norm()))


def test_a_product_that_takes_the_norm_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 could not hold the product before it is scaled, so one kernel does both."""
    monkeypatch.setattr(pipeline, "_observers", lambda given: [given] if given else [])
    monkeypatch.setattr(inner, "run_inner", lambda gm, *rest: gm.forward)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.RMSNorm(24, eps=1e-5), nn.Linear(24, 10)).half(), torch.randn(2, 5, 24).half()
    x[0, 0] *= 3000
    fast = torch.compile(model, backend="normfuse", options={"normfuse.lower": "deferred"})
    with torch.no_grad():
        found, plain, wanted = fast(x), model(x), copy.deepcopy(model).double()(x.double())
    assert [site.lowering for site in normfuse.last_report(fast).sites] == ["linear_rms_norm"]
    assert float((found - wanted).norm()) <= 1.5 * float((plain - wanted).norm())


class Stack(nn.Module):
    """Gated blocks that add to a stream; norms without weights can be deferred in training too."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(24, 1e-5, affine) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(24, 10) for _ in range(3))
        self.gate = nn.ModuleList(nn.Linear(24, 10) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(10, 24) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for norm, up, gate, down in zip(self.norms, self.up, self.gate, self.down, strict=True):
            y = norm(x)
            x = x + down(up(y) * gate(y).sigmoid())
        return x


@pytest.mark.parametrize(("verified", "trains"), [("off", False), ("sites", False), ("off", True)])
def test_products_that_add_the_stream(verified: str, trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first product behind each norm adds what the block before wrote, for all who read the stream."""
    monkeypatch.setattr(pipeline, "_observers", lambda given: [given] if given else [])
    monkeypatch.setattr(inner, "run_inner", lambda gm, *rest: gm.forward)
    torch.manual_seed(0)
    model, x = Stack(affine=not trains).half().train(trains), torch.randn(2, 5, 24).half()
    options = {"normfuse.lower": "deferred", "normfuse.verify": verified, "normfuse.freeze": "off"}
    fast, exact = torch.compile(model, backend="normfuse", options=options), copy.deepcopy(model).double()
    eager = copy.deepcopy(model)
    with torch.set_grad_enabled(trains):
        found, plain, wanted = fast(x), eager(x), exact(x.double())
    assert [site.lowering for site in normfuse.last_report(fast).sites] == ["linear_rms_norm"] * 3
    assert float((found - wanted).detach().norm()) <= 1.5 * float((plain - wanted).detach().norm())
    if not trains:
        return
    for value in (found, plain, wanted):
        (value * torch.linspace(-1, 1, 24, dtype=value.dtype)).sum().backward()
    for name, parameter in exact.named_parameters():
        made, other = model.get_parameter(name).grad, eager.get_parameter(name).grad
        off, usual = (float((one - parameter.grad).norm()) for one in (made, other))
        # Of a few numbers the ratio of two rounding errors varies; a rounding of each is always allowed.
        assert off <= 1.5 * usual + 2.0**-11 * float(parameter.grad.norm()), name
