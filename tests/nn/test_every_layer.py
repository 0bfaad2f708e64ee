"""What holds for every layer: state, copies, export, compilation, half precision, transforms."""

from __future__ import annotations

import copy
import inspect
import warnings

import pytest
import torch
from torch.func import functional_call, grad

import normfuse.nn as layers
from tests.nn.training import distance
from tests.nn.zoo import MASKED, MOVING, ZOO, build, mostly_slow

#: What another order of the same operations may change in float32: sums of 60 numbers, 60 half units of 6e-8.
FLOAT32 = 4e-6


def leaves(result):
    return list(result) if isinstance(result, tuple) else [result]


def close(a, b, within=FLOAT32):
    return all(distance(x, y) <= within for x, y in zip(leaves(a), leaves(b), strict=True))


def test_every_layer_is_in_the_zoo():
    public = {k: getattr(layers, k) for k in layers.__all__}
    modules = {k for k, v in public.items() if inspect.isclass(v) and issubclass(v, torch.nn.Module)}
    assert modules == {name.split()[0] for name in ZOO}


@pytest.mark.parametrize("name", sorted(ZOO))
def test_state_dict_and_copies(name):
    layer, inputs = build(name)
    layer(*inputs)
    layer.eval()
    fresh = ZOO[name][0]().eval()
    fresh.load_state_dict(layer.state_dict())
    twin = copy.deepcopy(layer)
    expected = leaves(layer(*inputs))
    for other in (fresh, twin):
        assert all(torch.equal(a, b) for a, b in zip(leaves(other(*inputs)), expected, strict=True))
    before = copy.deepcopy(layer.state_dict())
    twin.train()(*inputs)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert repr(layer)


#: Others have a test of their own, are compositions of PyTorch's modules, or forms of one that is here.
_ALIKE = ("1d", "3d", "PostNorm", "PeriNorm", "PreNorm", "DepthScaled", "clamp", "LayerNormZero")
COMPILED = sorted(k for k in ZOO if k not in MASKED and not any(part in k for part in _ALIKE))


@pytest.mark.parametrize("name", mostly_slow(sorted(ZOO), set(COMPILED) - {"SimpleRMSNorm outside"}))
def test_export_in_evaluation(name):
    layer, inputs = build(name)
    layer(*inputs)
    layer.eval()
    twin = copy.deepcopy(layer)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(twin, tuple(inputs), dynamic_shapes=tuple(batch for _ in inputs))
    larger = [torch.cat([x, x.flip(0)]) for x in inputs]
    assert close(program.module()(*larger), layer(*larger))
    assert not any(str(n.target).startswith(("aten.clone", "aten.contiguous")) for n in program.graph.nodes)


@pytest.mark.parametrize("name", mostly_slow(COMPILED, ("UnMixTNS", "EstimatedBatchNorm", "CRMSNorm", "IBN")))
def test_training_compiles_whole(name):
    """Without a graph break; three steps, with gradients and buffers."""
    layer, inputs = build(name)
    twin = copy.deepcopy(layer)
    fast = torch.compile(twin, backend="aot_eager", fullgraph=True)
    inputs[0].requires_grad_()
    for _ in range(3):
        gradients = []
        for one, call in ((layer, layer), (twin, fast)):
            one.zero_grad()
            inputs[0].grad = None
            sum((y * y.detach().sin()).sum() for y in leaves(call(*inputs))).backward()
            gradients.append(inputs[0].grad)
        assert distance(*gradients) <= 10 * FLOAT32
        for p, q in zip(layer.parameters(), twin.parameters(), strict=True):
            assert (p.grad is None and q.grad is None) or distance(q.grad, p.grad) <= 10 * FLOAT32
        assert all(distance(q, p) <= FLOAT32 for p, q in zip(layer.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("name", mostly_slow(MOVING, ("UnMixTNS", "EvoNormB0")))
def test_evaluation_compiles_with_gradients(name):
    """As adaptation at test time has them: what a layer writes to its buffers must not reach its backward."""
    layer, (x,) = build(name)
    layer.eval()
    twin = copy.deepcopy(layer)
    for call in (layer, torch.compile(twin, backend="aot_eager", fullgraph=True)):
        call(x).sin().sum().backward()
    pairs = zip(twin.parameters(), layer.parameters(), strict=True)
    assert all(distance(p.grad, q.grad) <= 10 * FLOAT32 for p, q in pairs)


#: Parameters, an intermediate value and the result are rounded to 8 bits, half a unit of 2^-8 each.
BFLOAT16 = 3 * 2**-8


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"TimeDependentParameter"}))
def test_half_precision_keeps_its_dtype_and_takes_statistics_in_float32(name):
    layer, inputs = build(name)
    half = copy.deepcopy(layer).bfloat16()
    given = [x.bfloat16() if x.is_floating_point() else x for x in inputs]
    expected = copy.deepcopy(half).float()(*(x.float() if x.dtype == torch.bfloat16 else x for x in given))
    result, expected = leaves(half(*given)), leaves(expected)
    for y, z in zip(result, expected, strict=True):
        assert y.dtype == torch.bfloat16
        assert distance(y, z) <= BFLOAT16


#: What is computed in float32 and rounded once. The others hand half precision to PyTorch's operators.
WIDENED = (
    "AlphaBatchNorm", "CRMSNorm", "EvoNormB0", "EvoNormS0", "RegionNorm", "SimpleRMSNorm clamp",
    "SimpleRMSNorm outside", "TimeDependentLayerNorm", "TimeDependentLayerNorm rms", "UnMixTNS",
)  # fmt: skip


@pytest.mark.parametrize("name", WIDENED)
def test_half_precision_is_rounded_once(name):
    layer, inputs = build(name)
    layer = layer.bfloat16().train(name != "AlphaBatchNorm")
    given = [x.bfloat16() if x.is_floating_point() else x for x in inputs]
    wide = copy.deepcopy(layer).float()
    others = [x.float() if x.is_floating_point() else x for x in given]
    assert distance(layer(*given), wide(*others).bfloat16()) <= FLOAT32


@pytest.mark.parametrize("name", sorted(ZOO))
def test_autocast(name):
    layer, inputs = build(name)
    expected = leaves(copy.deepcopy(layer)(*inputs))
    with torch.autocast("cpu", torch.bfloat16):
        result = leaves(layer(*inputs))
    assert all(distance(y, z) <= BFLOAT16 for y, z in zip(result, expected, strict=True))
    assert all(b.dtype in (torch.float32, torch.int64) for b in layer.buffers())


@pytest.mark.parametrize("name", sorted(ZOO))
def test_functional_gradients(name):
    """``torch.func`` takes buffers among the arguments, as it does for batch norms."""
    layer, inputs = build(name)
    parameters = {k: p.detach() for k, p in layer.named_parameters()}
    buffers = {k: b.clone() for k, b in layer.named_buffers()}

    def loss(x, parameters, buffers):
        made = functional_call(layer, (parameters, buffers), (x, *inputs[1:]))
        return sum(y.sin().sum() for y in leaves(made))

    expected = inputs[0].clone().requires_grad_()
    sum(y.sin().sum() for y in leaves(copy.deepcopy(layer)(expected, *inputs[1:]))).backward()
    found = grad(loss)(inputs[0], parameters, {k: b.clone() for k, b in buffers.items()})
    assert distance(found, expected.grad) <= 10 * FLOAT32


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("training", [True, False])
def test_two_calls_may_come_before_the_backward_of_the_first(name, training):
    """Gradients are those of calls with a backward each; DDP writes to buffers between them as well."""
    layer, (x,) = build(name)
    twin = copy.deepcopy(layer)
    made = [layer.train(training)(k * x).sin().sum() for k in (1, 2)]
    sum(made).backward()
    for k in (1, 2):
        twin.train(training)(k * x).sin().sum().backward()
    pairs = zip(layer.parameters(), twin.parameters(), strict=True)
    assert all(distance(p.grad, q.grad) <= FLOAT32 for p, q in pairs)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_shapes_on_meta_tensors(name):
    layer, inputs = build(name)
    meta = copy.deepcopy(layer).to("meta")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = leaves(meta(*(x.to("meta") for x in inputs)))
    assert [y.shape for y in made] == [y.shape for y in leaves(layer(*inputs))]
