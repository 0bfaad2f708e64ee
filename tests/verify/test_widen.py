"""widen: every floating cast, constant and computation in float64, everything else as captured."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from normfuse.verify import run_wide, widen
from normfuse.verify.compare import relative_error

EPS = torch.finfo(torch.float64).eps
aten = torch.ops.aten


def trace(f: Callable[..., object], *inputs: Tensor) -> GraphModule:
    return make_fx(f, pre_dispatch=True)(*inputs)


def wide(f: Callable[..., object], *inputs: Tensor) -> Tensor:
    (output,) = run_wide(widen(trace(f, *inputs)), inputs)
    assert isinstance(output, Tensor)
    return output


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rotary(x: Tensor, compute: torch.dtype) -> Tensor:
    position = torch.arange(x.shape[-2]).to(compute)
    frequency = 10000.0 ** (-torch.arange(0, x.shape[-1], dtype=compute) / x.shape[-1])
    angle = position[:, None] * frequency
    return x * angle.cos().to(x.dtype) + x.flip(-1) * angle.sin().to(x.dtype)


def softmax_island(x: Tensor, compute: torch.dtype) -> Tensor:
    return (x @ x.mT).softmax(-1, dtype=compute).to(x.dtype) @ x


def reductions(x: Tensor, compute: torch.dtype) -> Tensor:
    return x.mean(-1, dtype=compute) / 3 + x.sum(-1, dtype=compute) + x.cumsum(-1, dtype=compute)[..., -1]


def llama_norm(x: Tensor, compute: torch.dtype) -> Tensor:
    h = x.to(compute)
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def factories(x: Tensor, compute: torch.dtype) -> Tensor:
    ramp = torch.arange(0.0, 1.0, 0.1, dtype=compute)[: x.shape[-1]]
    scale = torch.full((), 0.1, dtype=compute) + torch.ones(3, dtype=compute).mean() / 3
    return x * (ramp + x.new_full((8,), 0.3, dtype=compute) + torch.full_like(x, 0.7, dtype=compute)) * scale


def type_as_chain(x: Tensor, compute: torch.dtype) -> Tensor:
    anchor = torch.zeros((), dtype=compute)
    return (x.type_as(anchor).exp() / 3).type_as(x).to(anchor) * 1.1


def converted(x: Tensor, compute: torch.dtype) -> Tensor:
    y = torch.ops.prims.convert_element_type(x, compute).sqrt()
    return aten._to_copy(y / 7, dtype=x.dtype)


def complex_rotation(x: Tensor, compute: torch.dtype) -> Tensor:
    angle = x.abs().to(compute)
    return torch.view_as_real(torch.polar(torch.ones_like(angle), angle) * torch.fft.fft(angle))


ISLANDS = [
    rotary,
    softmax_island,
    reductions,
    llama_norm,
    factories,
    type_as_chain,
    converted,
    complex_rotation,
]


@pytest.mark.parametrize("island", ISLANDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_widened_graph_is_the_function_written_in_float64(
    island: Callable[[Tensor, torch.dtype], Tensor], dtype: torch.dtype
) -> None:
    x = numbers(4, 8, dtype=dtype).abs()
    expected = island(x.double(), torch.float64)
    found = wide(lambda t: island(t, torch.float32), x)
    nodes = len(trace(lambda t: island(t, torch.float32), x).graph.nodes)
    assert found.dtype == expected.dtype == torch.float64
    # Same operations in the same dtype: one rounding of at most eps per node, if kernels differed at all.
    assert relative_error(found, expected) <= nodes * EPS
    # What widening only the inputs gives instead: the float32 island stays, and shows.
    narrow_island = island(x.double(), torch.float32)
    assert relative_error(narrow_island.double(), expected) > 1e3 * nodes * EPS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rms_norm_without_eps_keeps_the_eps_of_the_captured_dtype(dtype: torch.dtype) -> None:
    # Mean square 1e-10, far below float32's eps of 1.2e-7 and far above float64's of 2.2e-16.
    x = torch.full((2, 4), 1e-5).to(dtype)
    exact = x.double()
    # What eager itself uses for eps, to the precision of the dtype, decides which number is right.
    used = ((exact / F.rms_norm(x, (4,)).double()) ** 2 - exact**2).mean().item()
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert used == pytest.approx(eps, rel=8 * torch.finfo(dtype).eps)
    found = wide(lambda t: F.rms_norm(t, (4,)), x)
    assert relative_error(found, exact / (exact**2 + eps).sqrt()) <= 8 * EPS


def test_rms_norm_with_eps_keeps_it() -> None:
    x = torch.full((2, 4), 1e-5)
    exact = x.double()
    found = wide(lambda t: F.rms_norm(t, (4,), eps=1e-6), x)
    assert relative_error(found, exact / (exact**2 + 1e-6).sqrt()) <= 8 * EPS


def test_nan_to_num_keeps_the_largest_float32() -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, 1.0])
    largest = torch.finfo(torch.float32).max
    assert wide(torch.nan_to_num, x).tolist() == [largest, -largest, 0.0, 1.0]


def test_factories_without_dtype_follow_the_wide_default() -> None:
    def f(x: Tensor) -> Tensor:
        return (
            x * torch.arange(0.0, 1.0, 0.25)
            + torch.ones(4) / 3
            + torch.arange(4) / 7
            + torch.empty(4).fill_(0.1)
        )

    x = numbers(4)
    expected = x.double() * torch.arange(0.0, 1.0, 0.25, dtype=torch.float64)
    expected = expected + torch.ones(4, dtype=torch.float64) / 3
    expected = expected + torch.arange(4, dtype=torch.float64) / 7 + 0.1
    assert relative_error(wide(f, x), expected) <= 8 * EPS


def test_constants_and_buffers_are_widened_copies() -> None:
    module = torch.nn.Module()
    module.register_buffer("table", numbers(4))
    table = module.table
    gm = trace(lambda x: x * table / 3 + torch.tensor([0.1, 0.2, 0.3, 0.4]), numbers(4))
    held = dict(gm.named_buffers()) | {k: v for k, v in vars(gm).items() if isinstance(v, Tensor)}
    assert any(t is table for t in held.values())
    copy = widen(gm)
    floats = [t for t in copy.buffers() if t.is_floating_point()]
    assert len(floats) == 2
    assert all(t.dtype == torch.float64 for t in floats)
    assert not {t.data_ptr() for t in floats} & {t.data_ptr() for t in held.values()}
    assert table.dtype == torch.float32
    (found,) = run_wide(copy, [numbers(4)])
    expected = numbers(4).double() * table.double() / 3 + torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    assert torch.equal(found, expected)


def test_integers_and_booleans_stay() -> None:
    def f(x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        return ids.to(torch.int32) // 2, x > 0, x.argmax(-1), torch.arange(3, dtype=torch.int16), x.long()

    x, ids = numbers(2, 4) * 3, torch.tensor([5, 7])
    outputs = run_wide(widen(trace(f, x, ids)), [x, ids])
    for found, expected in zip(outputs, f(x, ids), strict=True):
        assert isinstance(found, Tensor)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_fill_constants_stay_numbers() -> None:
    lowest = torch.finfo(torch.float32).min
    x = numbers(4)
    found = wide(lambda t: t.masked_fill(t > 0, torch.finfo(t.dtype).min), x)
    assert torch.equal(found, x.double().masked_fill(x > 0, lowest))


@pytest.mark.parametrize(
    "cast",
    [
        lambda x: x.float(),
        lambda x: x.type_as(torch.zeros(1)),
        lambda x: x.to(torch.zeros(1)),
        lambda x: x.to("cpu", torch.float32),
    ],
    ids=["dtype", "type_as", "other", "device"],
)
def test_a_cast_that_copied_does_not_become_an_alias(cast: Callable[[Tensor], Tensor]) -> None:
    def f(x: Tensor) -> Tensor:
        return cast(x).mul_(2).to(x.dtype) + x

    x = numbers(4, dtype=torch.bfloat16)
    assert torch.equal(wide(f, x), x.double() * 3)


def test_a_cast_that_aliased_stays_an_alias() -> None:
    def f(x: Tensor) -> Tensor:
        h = x * 1
        h.float().mul_(2)
        return h

    x = numbers(4)
    assert torch.equal(wide(f, x), x.double() * 2)


def test_in_place_updates_do_not_reach_the_callers_inputs() -> None:
    x = numbers(4)
    before, version = x.clone(), x._version
    gm = trace(lambda t: t.add_(1), x.clone())
    (found,) = run_wide(widen(gm), [x])
    assert torch.equal(found, before.double() + 1)
    assert torch.equal(x, before)
    assert x._version == version


def test_the_same_input_twice_stays_one_tensor() -> None:
    def f(a: Tensor, b: Tensor) -> Tensor:
        a.add_(1)
        return b * 2

    x = numbers(4)
    gm = trace(f, numbers(4), numbers(4))
    assert torch.equal(run_wide(widen(gm), [x, x])[0], (x.double() + 1) * 2)


def test_attention_embedding_and_norms_run_in_float64() -> None:
    table, ids = numbers(10, 8, seed=1), torch.tensor([[1, 2, 3]])

    def f(t: Tensor) -> Tensor:
        x = F.embedding(ids, t)
        x = F.layer_norm(x, (8,), t[0], t[1], 1e-5)
        x = F.linear(x, t[:8])
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    assert relative_error(wide(f, table), f(table.double())) <= 64 * EPS


def test_autocast_regions_are_removed() -> None:
    weight = numbers(8, 8, seed=1)

    def f(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(x, weight)

    x = numbers(4, 8)
    assert f(x).dtype == torch.bfloat16
    assert "_enter_autocast" in trace(f, x).code
    assert "autocast" not in widen(trace(f, x)).code
    assert relative_error(wide(f, x), x.double() @ weight.double().T) <= 16 * EPS


def test_exported_graphs_and_their_regions_are_widened() -> None:
    class Island(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(numbers(8, seed=1))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = (x.abs().float().sum(-1, keepdim=True) / 3).to(x.dtype)
            with torch.autocast("cpu", torch.bfloat16):
                y = F.linear(x, self.weight[None])
            return y.float() * scale * self.weight

    x, model = numbers(4, 8), Island()
    gm = torch.export.export(model, (x,)).module()
    assert [node.args[:3] for node in autocast_regions(gm)] == [("cpu", torch.bfloat16, True)]
    assert [node.args[:3] for node in autocast_regions(widen(gm))] == [("cpu", torch.bfloat16, False)]
    (found,) = run_wide(widen(gm), [x])
    w, d = model.weight.detach().double(), x.double()
    assert relative_error(found, (d @ w)[:, None] * (d.abs().sum(-1, keepdim=True) / 3) * w) <= 32 * EPS
    assert model.weight.dtype == torch.float32


def autocast_regions(gm: GraphModule) -> list[Node]:
    return [n for n in gm.graph.nodes if n.target is torch.ops.higher_order.wrap_with_autocast]


def test_submodules_that_are_graphs_are_widened() -> None:
    region = trace(
        lambda x: F.rms_norm(x.float(), (4,)).to(torch.bfloat16), numbers(2, 4, dtype=torch.bfloat16)
    )
    for node in region.graph.nodes:
        node.meta.clear() if node.op == "placeholder" else None
    graph = Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_module("region", (x,)),))
    gm = GraphModule({"region": region}, graph)
    value = torch.full((2, 4), 1e-5, dtype=torch.bfloat16)
    (found,) = run_wide(widen(gm), [value])
    exact = value.double()
    eps = torch.finfo(torch.float32).eps
    assert relative_error(found, exact / (exact**2 + eps).sqrt()) <= 8 * EPS


def test_a_submodule_borrows_its_input_dtypes_from_the_call() -> None:
    region = trace(lambda x: F.rms_norm(x, (4,)), numbers(2, 4))
    for node in region.graph.nodes:
        node.meta.clear()
    outer = trace(lambda x: x * 1, numbers(2, 4))
    (mul,) = outer.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    outer.add_submodule("region", region)
    with outer.graph.inserting_after(mul):
        call = outer.graph.call_module("region", (mul,))
    outer.graph.output_node().args = ((call,),)
    value = torch.full((2, 4), 1e-5)
    exact, eps = value.double(), torch.finfo(torch.float32).eps
    (found,) = run_wide(widen(outer), [value])
    assert relative_error(found, exact / (exact**2 + eps).sqrt()) <= 8 * EPS


def test_metadata_assertions_are_dropped() -> None:
    def f(x: Tensor) -> Tensor:
        aten._assert_tensor_metadata.default(x, None, None, torch.float32)
        return x / 3

    gm = trace(f, numbers(4))
    target = aten._assert_tensor_metadata.default
    assert gm.graph.find_nodes(op="call_function", target=target)
    assert not widen(gm).graph.find_nodes(op="call_function", target=target)


def test_widen_leaves_the_captured_graph_alone() -> None:
    gm = trace(lambda x: F.rms_norm(x.float(), (4,)) + torch.ones(4), numbers(2, 4, dtype=torch.bfloat16))
    before = gm.print_readable(print_output=False)
    widen(gm)
    assert gm.print_readable(print_output=False) == before
