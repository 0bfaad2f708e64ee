"""The layers under torch.compile and torch.export: one graph, no recompilation, same numbers, and folded."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import normfuse
from normfuse.nn import UnifiedNorm
from tests.nn.steps import batches, close, drift, step
from tests.nn.zoo import MASKED, ZOO, build, mostly_slow

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


class Between(nn.Module):
    """A layer whose result a linear layer or a convolution reads, with the other inputs of the layer."""

    def __init__(self, layer, rank):
        super().__init__()
        make = {3: nn.LazyLinear, 4: partial(nn.LazyConv2d, kernel_size=1)}.get(rank, nn.Identity)
        self.layer, self.read = layer, make(4)

    def forward(self, x, *others):
        y = self.layer(x, *others)
        return self.read(y[0] if isinstance(y, tuple) else y)


#: Their eps, skip or factor is beside a root in all the ways there are.
_WITH_OPEN_SIZES = (
    "UnifiedNorm", "PowerNorm scaled", "RepBatchNorm", "WeightStandardizedConv2d", "EvoNormB0",
    "SimpleRMSNorm clamp",
)  # fmt: skip


@pytest.mark.parametrize("name", mostly_slow(sorted(ZOO), _WITH_OPEN_SIZES))
def test_open_sizes_change_nothing_about_the_norms(name):
    """Dynamo leaves the numbers of the layers open then, too."""
    layer, inputs = build(name)
    model, found = Between(layer, inputs[0].dim()).eval(), []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model(*copy.deepcopy(inputs))
        for dynamic in (False, True):
            torch._dynamo.reset()
            one = copy.deepcopy(model)
            fast = torch.compile(
                one, backend="normfuse", options={"normfuse.inner": "eager"}, dynamic=dynamic
            )
            fast(*copy.deepcopy(inputs))
            report = normfuse.last_report(fast)
            assert not any("at each call" in note for note in report.notes)
            found.append([(s.kind, s.action, s.refusals.keys()) for s in report.sites])
    assert found[0] == found[1]


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
