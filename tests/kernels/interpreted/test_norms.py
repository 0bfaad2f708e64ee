"""Results and gradients of each norm against float64, within what the roundings allow."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.bounds import check
from tests.kernels.cases import Case, call

NORMS = ("rms_norm", "layer_norm", "crms_norm")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GATED = ("weight", "bias", "residual", "gate")


def verify(case: Case) -> None:
    check(call(case), truncates=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 200])
@pytest.mark.parametrize("norm", NORMS)
def test_narrow_rows(norm, width, dtype):
    verify(Case(norm, 9, width, dtype))


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_gates_and_groups(norm, gate_first):
    for dtype in DTYPES:
        verify(Case(norm, 5, 24, dtype, GATED, groups=2, gate_first=gate_first, weight_offset=1.0))


@pytest.mark.parametrize("norm", NORMS)
def test_without_weight_and_residual(norm):
    for parts in ((), ("weight",), ("bias",), ("residual",), ("gate",)):
        verify(Case(norm, 4, 40, torch.bfloat16, parts))


@pytest.mark.parametrize("norm", NORMS)
def test_rows_of_one_program(norm):
    verify(Case(norm, 7, 1000, torch.bfloat16, weight_dtype=torch.bfloat16))


@pytest.mark.parametrize(("norm", "width"), [("layer_norm", 16500), ("crms_norm", 8200), ("rms_norm", 17000)])
def test_rows_in_blocks(norm, width):
    verify(Case(norm, 2, width, torch.bfloat16, ("weight", "bias", "residual")))


@pytest.mark.parametrize("gate_first", [False, True])
def test_gated_rows_in_blocks(gate_first):
    verify(Case("layer_norm", 2, 16385, torch.float32, GATED, gate_first=gate_first))


@pytest.mark.parametrize(("rows", "width"), [(3, 64), (3, 1000), (1, 16500)])
def test_a_variance_beside_a_large_mean(rows, width):
    """E(x ** 2) - mean ** 2 would leave nothing right: 1e8 * 2 ** -24 is 6, and the variance is 1."""
    verify(Case("layer_norm", rows, width, torch.float32, ("weight",), mean=1e4))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "width", [1, 2, 5, 31, 32, 33, 127, 512, 1023, 1025, 4096, 5120, 8192, 8193, 16384, 65536]
)
@pytest.mark.parametrize("norm", NORMS)
def test_the_whole_grid(norm, width, dtype):
    rows = 2 if width > 4000 else 11
    for parts, first in ((("weight", "bias", "residual"), False), (GATED, False), (GATED, True)):
        verify(Case(norm, rows, width, dtype, parts, gate_first=first))
    verify(Case(norm, rows, width, dtype, ("weight",), groups=3, weight_offset=1.0, weight_dtype=dtype))
