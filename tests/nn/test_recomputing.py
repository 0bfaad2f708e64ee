"""Layers that read buffers and write them, where something computes values again in the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._functorch.config as partitioner
from torch import nn
from torch.utils.checkpoint import checkpoint

import normfuse.nn as layers
from normfuse.errors import NormfuseError
from normfuse.nn import recomputing

#: Sums of at most 240 numbers, in another order: 240 half units of 1.1e-16, in seven layers and two steps.
NEAR = 7 * 2 * 240 * 1.1e-16

PAD = torch.zeros(2, 12, dtype=torch.bool)
PAD[1, 6:] = True


class Masked(nn.Module):
    """Tokens of padding alone, and then again with some that are none."""

    def __init__(self, norm, twice=True):
        super().__init__()
        self.norm, self.twice = norm, twice

    def forward(self, x):
        if not self.twice:
            return self.norm(x, PAD)
        x = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
        return self.norm(self.norm(x, torch.ones_like(PAD)), PAD)


class Network(nn.Module):
    """Every way to read a buffer and write it, in one graph."""

    def __init__(self):
        super().__init__()
        self.images = nn.Sequential(layers.EstimatedBatchNorm(4), layers.UnMixTNS(4, 2))
        self.tokens = nn.Sequential(
            layers.UnifiedNorm(4, window_size=2, warmup_iters=0),
            layers.PowerNorm(4, warmup_iters=1, layer_scale=False),
            Masked(layers.PowerNormV(4)),
            Masked(layers.BatchNorm(4)),
            layers.ProgressiveNorm(nn.LayerNorm(4), layers.BatchNorm(4), step=5),
        )

    def forward(self, x):
        return self.tokens(self.images(x).flatten(2).transpose(1, 2)).sin()


def image(step=0):
    torch.manual_seed(step)
    return torch.randn(2, 4, 4, 3, dtype=torch.float64) * (1 + step)


def near(found, expected):
    found, expected = found.double(), expected.double()
    assert (found - expected).norm() <= NEAR * (1 + expected.norm())


def agree(layer, compiled, twin, steps=2):
    """Values, gradients and buffers of both, step by step."""
    for step in range(steps):
        made = []
        for one, call in ((layer, layer), (twin, compiled)):
            one.zero_grad()
            x = image(step).requires_grad_()
            y = call(x)
            y.square().sum().backward()
            made.append([y.detach(), x.grad, *(p.grad for p in one.parameters() if p.grad is not None)])
        for found, expected in zip(*reversed(made), strict=True):
            near(found, expected)
        for found, expected in zip(twin.buffers(), layer.buffers(), strict=True):
            near(found, expected)


def pair(make):
    torch.manual_seed(0)
    layer = make().double()
    return layer, copy.deepcopy(layer)


NORMFUSE = {"backend": "normfuse", "options": {"normfuse.inner": "aot_eager"}}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"backend": "aot_eager"}, marks=pytest.mark.slow),
        pytest.param({"backend": "aot_eager", "dynamic": True}, marks=pytest.mark.slow),
        pytest.param({"backend": "inductor"}, marks=pytest.mark.slow),
        pytest.param({"backend": "normfuse"}, marks=pytest.mark.slow),
        pytest.param({"backend": "inductor", "mode": "reduce-overhead"}, marks=pytest.mark.slow),
    ],
)
def test_one_graph_has_the_gradients_of_eager_mode(options):
    network, twin = pair(Network)
    agree(network, torch.compile(twin, fullgraph=True, **options), twin)


@pytest.mark.parametrize("make", [pytest.param(layers.BatchNorm, marks=pytest.mark.slow), layers.PowerNormV])
def test_one_layer_in_two_places_of_a_graph(make):
    """The first reads statistics that the second has changed by the backward pass."""
    layer, twin = pair(lambda: Masked(make(4)))
    agree(layer, torch.compile(twin, backend="aot_eager", fullgraph=True), twin)


SMALL = {"estimated": lambda: layers.EstimatedBatchNorm(4), "unmix": lambda: layers.UnMixTNS(4, 3)}


@pytest.mark.parametrize("name", SMALL)
def test_normfuse_keeps_the_operator(name):
    layer, twin = pair(SMALL[name])
    agree(layer, torch.compile(twin, fullgraph=True, **NORMFUSE), twin)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("unmix", {"activation_memory_budget": 0.0}),
        pytest.param("estimated", {"activation_memory_budget": 0.5}, marks=pytest.mark.slow),
        ("unmix", {"aggressive_recomputation": True}),
        pytest.param("estimated", {"ban_recompute_not_in_allowlist": False}, marks=pytest.mark.slow),
    ],
)
def test_a_compiler_that_saves_memory_leaves_the_layer_to_eager_mode(name, setting):
    layer, twin = pair(SMALL[name])
    with partitioner.patch(**setting):
        agree(layer, torch.compile(twin, backend="aot_eager"), twin)


@pytest.mark.parametrize("name", ["images.0", "images.1", *(f"tokens.{k}" for k in range(5))])
def test_each_layer_says_so_where_the_graph_has_to_be_whole(name):
    layer = Network().get_submodule(name)
    x = torch.randn(2, 4, 4, 3) if "images" in name else torch.randn(2, 12, 4)
    with (
        partitioner.patch(activation_memory_budget=0.5),
        pytest.raises(Exception, match="cannot be compiled"),
    ):
        torch.compile(layer, backend="eager", fullgraph=True)(x)


SECOND_RUN = {
    "estimated": lambda: layers.EstimatedBatchNorm(4),
    "channel": lambda: layers.BatchChannelNorm(4, 2, estimate=True),
    "unmix": lambda: layers.UnMixTNS(4, 3),
    "unified": lambda: layers.UnifiedNorm(3, window_size=2, warmup_iters=0),
    "power": lambda: layers.PowerNorm(3),
    "progressive": lambda: layers.ProgressiveNorm(nn.LayerNorm(3), layers.RepBatchNorm(3)),
}


@pytest.mark.parametrize("name", SECOND_RUN)
@pytest.mark.parametrize("how", ["eager", "reentrant", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_second_run_that_would_give_another_output_is_refused(name, how):
    """Compiled, too, the region is left to eager mode, which refuses."""
    layer, _ = pair(SECOND_RUN[name])

    def call(x):
        return checkpoint(layer, x, use_reentrant=how == "reentrant")

    y = (torch.compile(call, backend="aot_eager") if how == "compiled" else call)(image().requires_grad_())
    with pytest.raises(NormfuseError, match="activation checkpointing"):
        y.sum().backward()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Masked(layers.BatchNorm(4), twice=False),
        lambda: Masked(layers.PowerNormV(4), twice=False),
        lambda: layers.EvoNormB0(12),
        lambda: layers.AlphaBatchNorm(12),
        lambda: layers.IBN(12),
    ],
)
@pytest.mark.parametrize("how", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_second_run_that_gives_the_same_output_is_allowed(make, how):
    layer, twin = pair(make)
    shape = (2, 12, 4) if isinstance(layer, Masked) else (2, 12, 4, 3)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def call(x):
        return checkpoint(layer, x, use_reentrant=False)

    y = (torch.compile(call, backend="aot_eager") if how == "compiled" else call)(x)
    (found,) = torch.autograd.grad(y.sin().sum(), x)
    (expected,) = torch.autograd.grad(twin(x).sin().sum(), x)
    near(found, expected)


def test_a_compiled_region_is_left_to_eager_mode_where_it_would_be_computed_again():
    layer, _ = pair(SMALL["unmix"])
    y = torch.compile(lambda x: checkpoint(layer, x, use_reentrant=False), backend="aot_eager")(
        image().requires_grad_()
    )
    with pytest.raises(NormfuseError, match="activation checkpointing"):
        y.sum().backward()


def test_functional_gradients_compiled_and_batched():
    """Per-sample gradients of several models at once, with buffers of their own."""
    layer = layers.EstimatedBatchNorm(4).double()
    buffers = {k: torch.stack([b, 2 * b + 1]) for k, b in layer.named_buffers()}
    parameters = dict(layer.named_parameters())

    def loss(x, buffers):
        return torch.func.functional_call(layer, (parameters, buffers), (x,)).sin().sum()

    gradient = torch.func.vmap(torch.func.grad(loss))
    x = torch.stack([image(1), image(2)])
    eager, compiled = ({k: b.clone() for k, b in buffers.items()} for _ in range(2))
    expected = gradient(x, eager)
    near(torch.compile(gradient, backend="aot_eager", fullgraph=True)(x, compiled), expected)
    for name, moved in eager.items():
        near(compiled[name], moved)


def test_copies_of_a_compiled_layer_train_on_their_own():
    layer, twin = pair(lambda: layers.EstimatedBatchNorm(4))
    compiled = torch.compile(twin, backend="aot_eager")
    agree(layer, compiled, twin, steps=1)
    copied = copy.deepcopy(twin)
    agree(layer, compiled, twin, steps=1)
    assert not torch.equal(copied.running_var, twin.running_var)
    agree(copied, torch.compile(twin, backend="aot_eager"), copy.deepcopy(copied), steps=0)


def test_exported_programs_have_no_operator_of_normfuse():
    layer = layers.UnMixTNS(4, 3).double()
    program = torch.export.export(layer, (image(),))
    assert not any("normfuse" in str(node.target) for node in program.graph.nodes)


def test_without_the_operator_gradients_would_be_wrong(monkeypatch):
    """Shows that the comparison can fail, and on which PyTorch the operator is needed."""
    layer, twin = pair(SMALL["unmix"])
    monkeypatch.setattr(recomputing, "_copied", lambda values: values)
    with pytest.raises(AssertionError):
        agree(layer, torch.compile(twin, backend="aot_eager", fullgraph=True), twin)
