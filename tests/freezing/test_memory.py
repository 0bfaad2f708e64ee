"""The memory of constants is given back with the model, by Inductor as well."""

from __future__ import annotations

import gc

import torch
from torch import nn
from torch._subclasses import FakeTensor

import normfuse


def held(entries: int) -> int:
    """How many tensors have memory for so many numbers in float32, or memory that is not PyTorch's."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and not isinstance(t, FakeTensor)]
    return sum(t.is_mkldnn or _has_memory_for(t, entries) for t in tensors)


def _has_memory_for(tensor: torch.Tensor, entries: int) -> bool:
    is_plain = tensor.layout == torch.strided and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return is_plain and tensor.untyped_storage().nbytes() >= 4 * entries


def test_constants_go_with_the_model() -> None:
    x = torch.randn(64, 173)
    before = held(173 * 391)
    model = nn.Sequential(nn.Linear(173, 391), nn.Linear(391, 173)).eval()
    fast = torch.compile(model, backend="normfuse", options={"normfuse.freeze": "on"})
    with torch.no_grad():
        # Two sums of at most 391 products in float32, in any order.
        torch.testing.assert_close(fast(x), model(x), rtol=0, atol=2 * 391 * 2**-24)
    assert normfuse.last_report(fast).frozen == 1
    assert held(173 * 391) > before
    del model, fast
    torch._dynamo.reset()
    assert held(173 * 391) == before
