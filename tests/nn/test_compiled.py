"""The layers under torch.compile and torch.export: one graph, no recompilation, same numbers, and folded."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import normfuse
from normfuse.nn import UnifiedNorm
from tests.nn.steps import batches, close, drift, step
from tests.nn.zoo import MASKED, ZOO, mostly_slow

each = pytest.mark.parametrize("name", MASKED)
#: Steps from one before the iteration where the gradient's ratio begins, so that branches change on the way.
START, STEPS = 998, 8


def pair(name):
    """A layer in the middle of its training, and a copy of it."""
    layer = ZOO[name][0]().double()
    drift(layer)
    for batch in batches(4, False, seed=9):
        step(layer, batch)
    if name == "UnifiedNorm":
        layer.iters.fill_(START)
    return layer, copy.deepcopy(layer)


def compare(layer, compiled, twin, masked, steps=STEPS):
    """Outputs, gradients and buffers of both, step by step; the last batch but one is an outlier."""
    for batch in batches(steps, masked, odd=(steps - 2,)):
        for found, expected in zip(step(compiled, batch), step(layer, batch), strict=True):
            close(found, expected)
        for found, expected in zip(twin.parameters(), layer.parameters(), strict=True):
            close(found.grad, expected.grad)
        for found, expected in zip(twin.buffers(), layer.buffers(), strict=True):
            close(found, expected)


@pytest.mark.parametrize(
    "name", mostly_slow(MASKED, ("UnifiedNorm", "PowerNorm", "BatchNorm", "ProgressiveNorm"))
)
def test_training_is_one_graph_with_the_same_numbers(name):
    """A mask in all but one, where it would leave out the outliers."""
    layer, twin = pair(name)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compare(layer, compiled, twin, masked=name != "UnifiedNorm")
    if name == "UnifiedNorm":
        assert 0 < layer.skip_counter < layer.iters - START


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), [("UnifiedNorm", "inductor"), ("PowerNorm", "normfuse")])
def test_training_with_a_real_compiler(name, backend):
    layer, twin = pair(name)
    compare(layer, torch.compile(twin, backend=backend, fullgraph=True), twin, masked=True)


@pytest.mark.parametrize("name", mostly_slow(MASKED, ("UnifiedNorm",)))
def test_training_with_normfuse_before_the_compiler(name):
    layer, twin = pair(name)
    fast = torch.compile(twin, backend="normfuse", options={"normfuse.inner": "aot_eager"}, fullgraph=True)
    compare(layer, fast, twin, masked=False, steps=5)


@each
def test_evaluation_exports_without_layout_copies(name):
    layer, _ = pair(name)
    layer.eval()
    x = torch.randn(2, 5, 8).double()
    tokens = torch.export.Dim("tokens", min=2, max=99)
    program = torch.export.export(layer, (x,), dynamic_shapes=({1: tokens},)).run_decompositions({})
    longer = torch.randn(2, 9, 8).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        close(program.module()(longer), layer(longer).detach())
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not {
        t for t in targets if any(w in t for w in ("permute", "transpose", "clone", "contiguous", "copy"))
    }


class PreNorm(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.read = norm, nn.Linear(8, 8)

    def forward(self, x):
        return self.read(self.norm(x))


@pytest.mark.parametrize("name", [name for name in MASKED if name != "PowerNorm scaled"])
def test_normfuse_folds_evaluation_into_the_reader(name):
    model = PreNorm(pair(name)[0].float()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        report = normfuse.explain(model, torch.randn(2, 5, 8))
    assert list(report.after.values()) in ([], [0]), str(report)
    assert report.folded >= 1, str(report)


def test_with_layer_scaling_an_rms_norm_stays():
    report = normfuse.explain(PreNorm(pair("PowerNorm scaled")[0].float()).eval(), torch.randn(2, 5, 8))
    assert report.after == {"rms_norm": 1}, str(report)


def test_evaluation_with_changing_statistics_is_not_stale():
    model = PreNorm(UnifiedNorm(8, window_size=1)).eval()
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        for _ in range(3):
            # A product of six entries in float32, in another order, on values below ten.
            torch.testing.assert_close(fast(x), model(x), rtol=0, atol=8 * 10 * 2**-24)
            model.train()(x * 3)
            model.eval()
