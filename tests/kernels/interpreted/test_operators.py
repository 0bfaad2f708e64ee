"""The operators keep what PyTorch's checks of custom operators ask for, and repeat themselves to the bit."""

from __future__ import annotations

import pytest
import torch

from normfuse.kernels import operators
from normfuse.kernels.linear_operator import linear
from tests.kernels.cases import Case, call

#: What needs fake tensors cannot run under the interpreter, which looks into their memory.
CHECKS = ("test_schema", "test_autograd_registration")


@pytest.mark.parametrize("has_more", [False, True])
def test_schema_and_gradients_are_registered(has_more):
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    more = (torch.randn(8), torch.randn(3, 8), torch.randn(3, 8)) if has_more else (None, None, None)
    torch.library.opcheck(operators.norm, (x, weight, *more, 1, 1e-5, 0.0, 1, False, True), test_utils=CHECKS)
    torch.library.opcheck(linear, (x, torch.randn(4, 8), None, more[1], 1e-5), test_utils=CHECKS)


def test_sums_over_rows_are_the_same_each_time():
    """No atomics: the programs leave partial sums, which are added up in one order."""
    case = Case("layer_norm", 40, 120, torch.bfloat16)
    first, second = call(case), call(case)
    assert all(torch.equal(value, second.gradients[name]) for name, value in first.gradients.items())
