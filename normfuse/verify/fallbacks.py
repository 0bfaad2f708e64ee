"""Operators without a float64 kernel, written in terms of operators that have one.

grouped_mm(a, b, offs)[offs[i-1]:offs[i]] = a[offs[i-1]:offs[i]] @ b[i]          (rows of a are grouped)
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["FALLBACKS"]


def grouped_mm(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``aten._grouped_mm`` in any dtype and differentiable; rows past the last offset are zero.

    Without ``offs`` both operands have a leading group dimension. Otherwise ``offs`` (int, one end per group)
    splits the rows of ``a`` (2-d) and, if ``b`` is 3-d, meets ``b[i]``; splits the columns of ``b`` against
    ``a[i]`` (3-d); or, with both 2-d, splits the contracted dimension and stacks the products.
    """
    product = a @ b if offs is None else _by_offsets(a, b, [0, *offs.tolist()])
    product = product if bias is None else product + bias
    return product if out_dtype is None else product.to(out_dtype)


def _by_offsets(a: Tensor, b: Tensor, ends: list[int]) -> Tensor:
    spans = [slice(start, end) for start, end in pairwise(ends)]
    if a.dim() == 2 and b.dim() == 2:
        return torch.stack([a[:, s] @ b[s] for s in spans])
    if a.dim() == 2:
        rest = a.new_zeros(a.shape[0] - ends[-1], b.shape[-1])
        return torch.cat([*(a[s] @ b[i] for i, s in enumerate(spans)), rest])
    rest = a.new_zeros(a.shape[1], b.shape[-1] - ends[-1])
    return torch.cat([*(a[i] @ b[:, s] for i, s in enumerate(spans)), rest], dim=1)


FALLBACKS: dict[object, Callable[..., Tensor]] = {torch.ops.aten._grouped_mm.default: grouped_mm}
"""Operator -> the function that stands in for it in a widened graph, called with the same arguments."""
