"""grouped_mm stands in for the operator that has no float64 kernel: same values in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normfuse.verify import run_wide, verify, widen
from normfuse.verify.capture import capture_reference
from normfuse.verify.fallbacks import grouped_mm

pytestmark = pytest.mark.rounding

ENDS = torch.tensor([8, 8, 24, 32], dtype=torch.int32)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


CASES = {
    "rows of a": (numbers(32, 16), numbers(4, 16, 8), ENDS),
    "columns of b": (numbers(4, 8, 16), numbers(16, 32), ENDS),
    "contracted": (numbers(8, 32), numbers(32, 16), ENDS),
    "batched": (numbers(4, 8, 16), numbers(4, 16, 8), None),
}


@pytest.mark.parametrize(("a", "b", "offs"), CASES.values(), ids=CASES)
def test_the_fallback_is_the_operator(a: Tensor, b: Tensor, offs: Tensor | None) -> None:
    expected = torch.ops.aten._grouped_mm(a, b, offs)
    found = grouped_mm(a, b, offs)
    assert found.shape == expected.shape
    # Sums of at most 32 products of float32.
    assert torch.allclose(
        found, expected, rtol=0, atol=32 * torch.finfo(torch.float32).eps * expected.abs().max()
    )


def test_the_oracle_uses_it() -> None:
    a, b, offs = CASES["rows of a"]

    def f(x: Tensor) -> Tensor:
        return torch.ops.aten._grouped_mm(x, b, offs)

    capture = capture_reference(f, (a,))
    (found,) = run_wide(widen(capture.graph), capture.inputs)
    expected = torch.cat([a.double()[s] @ b.double()[i] for i, s in enumerate(_spans())])
    assert torch.allclose(found, expected, rtol=1e-13, atol=1e-13)
    assert verify(f, f, (a,)).ok
    assert not verify(f, lambda x: f(x) * 1.0001, (a,)).ok


def _spans() -> list[slice]:
    return [slice(0, 8), slice(8, 8), slice(8, 24), slice(24, 32)]
