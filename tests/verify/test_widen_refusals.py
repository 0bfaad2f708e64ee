"""What the oracle refuses, and the global state that it leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from normfuse.errors import VerificationError
from normfuse.verify import run_wide, widen
from normfuse.verify.oracle import wide_arithmetic


def trace(f: Callable[..., object], *inputs: Tensor) -> GraphModule:
    return make_fx(f, pre_dispatch=True)(*inputs)


def wide(f: Callable[..., object], *inputs: Tensor) -> Tensor:
    (output,) = run_wide(widen(trace(f, *inputs)), inputs)
    assert isinstance(output, Tensor)
    return output


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_rms_norm_without_eps_on_an_unrecorded_dtype_is_refused() -> None:
    gm = trace(lambda t: F.rms_norm(t, (4,)), numbers(2, 4))
    for node in gm.graph.nodes:
        node.meta.pop("val", None)
    with pytest.raises(VerificationError, match="leaves eps to its input's dtype"):
        widen(gm)


def test_an_ambient_autocast_is_off_inside() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with wide_arithmetic():
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


def test_other_submodules_are_refused() -> None:
    graph = Graph()
    graph.output((graph.call_module("layer", (graph.placeholder("x"),)),))
    gm = GraphModule({"layer": torch.nn.Linear(2, 2)}, graph)
    with pytest.raises(VerificationError, match="layer, a Linear that is not a graph"):
        widen(gm)


def test_method_calls_are_refused() -> None:
    graph = Graph()
    graph.output((graph.call_method("float", (graph.placeholder("x"),)),))
    with pytest.raises(VerificationError, match="calls the method 'float'"):
        widen(GraphModule({}, graph))


def test_bit_casts_of_floats_are_refused_and_of_integers_kept() -> None:
    with pytest.raises(VerificationError, match="reinterprets the bits"):
        wide(lambda x: x.view(torch.int32), numbers(4))
    with pytest.raises(VerificationError, match="reinterprets the bits"):
        wide(lambda i: i.view(torch.float32), torch.arange(4, dtype=torch.int32))
    ids = torch.tensor([-1, 2], dtype=torch.int32)
    assert wide(lambda i: i.view(torch.uint8), ids).tolist() == ids.view(torch.uint8).tolist()


def test_quantization_is_refused() -> None:
    def fake(x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255)

    with pytest.raises(VerificationError, match="quantizes"):
        wide(fake, numbers(4))


def test_an_operator_that_stays_narrow_is_reported() -> None:
    with torch.library._scoped_library("normfuse_test_verify", "DEF") as library:
        library.define("narrow(Tensor x) -> Tensor")
        library.impl("narrow", lambda x: x.float(), "CompositeExplicitAutograd")
        narrow = torch.ops.normfuse_test_verify.narrow
        with pytest.raises(VerificationError, match=r"narrow.* returns torch\.float32 from float64"):
            wide(lambda x: narrow(x), numbers(4))


def test_an_operator_without_a_float64_kernel_is_reported() -> None:
    def refuse(x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("float32 only")
        return x.clone()

    with torch.library._scoped_library("normfuse_test_verify2", "DEF") as library:
        library.define("picky(Tensor x) -> Tensor")
        library.impl("picky", refuse, "CompositeExplicitAutograd")
        picky = torch.ops.normfuse_test_verify2.picky
        with pytest.raises(VerificationError, match="does not run in float64: float32 only"):
            wide(lambda x: picky(x), numbers(4))


def test_run_wide_restores_the_global_state_even_after_an_error() -> None:
    gm = widen(trace(lambda x: x @ x, numbers(4, 4)))
    state = torch.get_rng_state()
    with pytest.raises(VerificationError, match="does not run in float64"):
        run_wide(gm, [numbers(2, 3)])
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
