"""The compiled models on CUDA against the float64 oracle."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import normfuse
from bench.llama_step import LlamaStep
from bench.subjects import randomized
from normfuse.cli.decoder import DecoderSize, DecoderStep, decode_inputs
from tests.models.zoo import ZOO, build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONVERTED = [name for name in sorted(ZOO) if ZOO[name].after != ZOO[name].found]


def on_cuda(name: str, dtype: torch.dtype, layers: int | None = None):
    pytest.importorskip("transformers", reason="the models of the zoo are those of transformers")
    model, args, kwargs = build(name, dtype, layers)
    return model.cuda(), tuple(a.cuda() for a in args), kwargs


def decoder(name: str, dtype: torch.dtype):
    """A decoder of two layers that needs nothing but PyTorch, and one token for it."""
    size = DecoderSize(layers=2, width=256, heads=4, vocabulary=500, positions=64, cached=16)
    torch.manual_seed(0)
    model = randomized({"llama": LlamaStep, "gpt2": DecoderStep}[name](size)).to("cuda", dtype)
    token, position, *cache = decode_inputs(size)
    return model, (token.cuda(), position.cuda(), *(one.to("cuda", dtype) for one in cache))


@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        ("auto", torch.bfloat16),
        ("triton", torch.bfloat16),
        ("deferred", torch.bfloat16),
        ("deferred", torch.float16),
        ("deferred", torch.float32),
    ],
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_decoders_by_what_runs_their_norms(name: str, dtype: torch.dtype, way: str) -> None:
    model, args = decoder(name, dtype)
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options={"normfuse.lower": way})
    with torch.no_grad():
        result = normfuse.verify(model, fast, args)
    assert result.ok, str(result)
    lowered = [site.lowering for site in normfuse.last_report(fast).sites]
    assert not [one for one in lowered if "could not be measured" in one]
    if way == "triton":
        assert set(lowered) == {"triton"}
    elif way == "deferred" and name == "llama":
        wanted = "linear_rms_norm" if dtype == torch.float16 else "deferred"
        assert lowered.count(wanted) >= 4, lowered


def test_cuda_graphs_see_changed_weights() -> None:
    """Folded weights keep their addresses, so a recorded CUDA graph reads the new values."""
    model, args = decoder("gpt2", torch.float32)
    fast = torch.compile(
        model, backend=normfuse.normfuse_backend, options={"normfuse.mode": "reduce-overhead"}
    )
    with torch.no_grad():
        for factor in (1.0, 1.3, 0.7):
            for block in model.blocks:
                block.mlp[2].weight.mul_(factor)
            for _ in range(3):
                torch.compiler.cudagraph_mark_step_begin()
                candidate = fast(*args)[0].clone()
            expected = model(*args)[0]
            assert (candidate - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("way", ["triton", "auto"])
@pytest.mark.parametrize("trains", [False, True])
def test_norms_as_kernels(trains: bool, way: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 256)) for _ in range(3)]
    model = nn.Sequential(*layers, nn.RMSNorm(256)).cuda()
    x = torch.randn(64, 256, device="cuda")
    fast = torch.compile(
        copy.deepcopy(model), backend=normfuse.normfuse_backend, options={"normfuse.lower": way}
    )
    with torch.set_grad_enabled(trains):
        found, wanted = fast(x), model.double()(x.double())
    lowered = {site.lowering for site in normfuse.last_report(fast).sites}
    if way == "triton":
        assert lowered == {"triton"}
    assert not [one for one in lowered if "could not be measured" in one]
    # Three products of 256 numbers in a row, with the ten digits of float32 (TF32 is off by default).
    assert float((found - wanted).norm() / wanted.norm()) < 3 * 256 * 2**-24
    if trains:
        arriving = torch.randn_like(x)
        for value in (found, wanted):
            (value * arriving).sum().backward()
        for name, parameter in model.named_parameters():
            off = float((fast.get_parameter(f"_orig_mod.{name}").grad - parameter.grad).norm())
            assert off < 16 * 256 * 2**-24 * float(parameter.grad.norm()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONVERTED)
def test_compiled_models(name: str, dtype: torch.dtype) -> None:
    model, args, kwargs = on_cuda(name, dtype)
    with torch.no_grad():
        fast = torch.compile(model, backend=normfuse.normfuse_backend)
        result = normfuse.verify(model, fast, args, kwargs)
    assert result.ok, str(result)
    assert normfuse.last_report().after == ZOO[name].after


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twelve_layers(dtype: torch.dtype) -> None:
    model, args, kwargs = on_cuda("gpt2", dtype, layers=12)
    with torch.no_grad():
        fast = torch.compile(model, backend=normfuse.normfuse_backend)
        result = normfuse.verify(model, fast, args, kwargs)
    assert result.ok, str(result)
