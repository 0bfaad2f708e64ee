"""The kernels on a CUDA device against float64, and as ``torch.compile`` uses them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton", reason="the kernels are written in Triton")

from normfuse import kernels
from normfuse.kernels import choice, linear_operator, operators
from normfuse.kernels.linear_operator import linear
from tests.kernels.bounds import check, unit
from tests.kernels.cases import Case, call

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NORMS = ("rms_norm", "layer_norm", "crms_norm")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALL = ("weight", "bias", "residual", "gate")
EPS = 1e-5


@pytest.fixture(autouse=True)
def _first_plans(monkeypatch):
    """To measure would take more time than all of this; ``test_choice`` does."""
    monkeypatch.setattr(choice, "_has_choice", lambda device: False)


@pytest.mark.parametrize("width", [1, 3, 64, 1000, 1024, 4096, 8192, 8193, 16384, 16385, 65536])
@pytest.mark.parametrize("norm", NORMS)
def test_widths(norm, width):
    check(call(Case(norm, 37, width, torch.bfloat16, device="cuda")), truncates=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1000, 4096, 20000])
@pytest.mark.parametrize("norm", NORMS)
def test_dtypes(norm, width, dtype):
    check(call(Case(norm, 37, width, dtype, ("weight",), device="cuda", weight_dtype=dtype)), truncates=False)


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("width", [40, 2048, 20000])
@pytest.mark.parametrize("norm", NORMS)
def test_gates_and_groups(norm, width, gate_first):
    case = Case(norm, 19, width, torch.bfloat16, ALL, 2, gate_first, 1.0, device="cuda")
    check(call(case), truncates=False)


@pytest.mark.parametrize("width", [40, 1000, 4096, 8192])
@pytest.mark.parametrize("norm", NORMS)
def test_other_plans(norm, width, monkeypatch):
    monkeypatch.setattr(operators, "chosen", lambda kernel, plans, *more: plans[-1])
    check(call(Case(norm, 37, width, torch.bfloat16, device="cuda")), truncates=False)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("rows", [1, 40, 300, 600])
def test_other_plans_of_the_product(rows, place, monkeypatch):
    monkeypatch.setattr(
        linear_operator, "chosen", lambda kernel, plans, *more: plans[min(place, len(plans) - 1)]
    )
    for adds in (False, True):
        check_product(rows, 1024, 700, torch.bfloat16, adds)


def test_many_rows_and_the_same_sums_each_time():
    case = Case("layer_norm", 5000, 768, torch.bfloat16, device="cuda")
    first, second = call(case), call(case)
    check(first, truncates=False)
    assert all(torch.equal(value, second.gradients[name]) for name, value in first.gradients.items())


def test_more_values_than_32_bits_can_count():
    """Offsets of rows are 64 bits wide: 2 ** 31 values and some."""
    x = torch.zeros((1 << 31) // 8192 + 2, 8192, dtype=torch.bfloat16, device="cuda")
    x[-1] = torch.randn(8192)
    wanted = F.rms_norm(x[-1].double(), (8192,), eps=EPS)
    y = kernels.rms_norm(x, eps=EPS)
    assert (y[-1].double() - wanted).abs().max() <= 2**-8 * wanted.abs().max() * 1.01
    assert not y[:-1].any()


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 4096, 512), (5, 77, 33), (300, 1024, 700)])
def test_the_product(rows, inputs, outputs, dtype, adds):
    check_product(rows, inputs, outputs, dtype, adds)


def check_product(rows, inputs, outputs, dtype, adds):
    torch.manual_seed(0)
    sizes = ((rows, inputs), (outputs, inputs), (outputs,), (rows, inputs))
    x, weight, bias, residual = (torch.randn(s, device="cuda").to(dtype) for s in sizes)
    if adds:
        found, h = kernels.linear_rms_norm(x, weight, bias, EPS, residual)
        assert torch.equal(h, x + residual)
    else:
        found, h = kernels.linear_rms_norm(x, weight, bias, EPS), x
    wide = h.double()
    rstd = (wide.square().mean(-1, keepdim=True) + EPS).rsqrt()
    wanted = F.linear(wide, weight.double()) * rstd + bias.double()
    terms = F.linear(wide.abs(), weight.double().abs()) * rstd + bias.double().abs()
    limit = unit(dtype, False) * wanted.abs() + (inputs + 60) * 2.0**-24 * terms + 1e-37
    assert ((found.double() - wanted).abs() <= limit + torch.finfo(dtype).smallest_normal).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_a_device_that_is_not_the_current_one():
    check(call(Case("rms_norm", 5, 64, device="cuda:1")), truncates=False)


def test_the_checks_of_custom_operators():
    x, weight = (torch.randn(s, device="cuda", requires_grad=True) for s in ((8, 64), (64,)))
    torch.library.opcheck(operators.norm, (x, weight, None, x.detach(), None, 0, EPS, 0.0, 1, False, True))
    torch.library.opcheck(linear, (x, torch.randn(32, 64, device="cuda"), None, None, EPS))


@pytest.mark.parametrize("is_dynamic", [False, True])
def test_compiled_with_what_stands_beside(is_dynamic):
    def block(x, residual, weight, matrix):
        y, h = kernels.rms_norm(torch.relu(x), weight, eps=EPS, residual=residual)
        return F.silu(y) + h, kernels.linear_rms_norm(h, matrix, eps=EPS)

    fast = torch.compile(block, fullgraph=True, dynamic=is_dynamic)
    weight, matrix = torch.randn(256, device="cuda"), torch.randn(64, 256, device="cuda")
    for rows in (7, 33):
        x, residual = (torch.randn(rows, 256, device="cuda", requires_grad=True) for _ in range(2))
        results = [f(x, residual, weight, matrix) for f in (block, fast)]
        gradients = [torch.autograd.grad(sum(t.sum() for t in r), (x, residual)) for r in results]
        for plain, compiled in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
            assert (plain - compiled).abs().max() <= 2000 * 2**-24 * plain.abs().max()
