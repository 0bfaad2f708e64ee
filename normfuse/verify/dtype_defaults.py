"""Arguments whose default depends on the input's dtype, as numbers.

    rms_norm(x, eps=None)    == rms_norm(x, eps=finfo(compute dtype of x).eps)
    nan_to_num(x, posinf=None) == nan_to_num(x, posinf=finfo(x.dtype).max)

In float64 the defaults would be other numbers, hence another function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import Node

from normfuse.errors import VerificationError
from normfuse.verify.schema import bind, operator_name, replace_argument

__all__ = ["fill_dtype_defaults"]


def fill_dtype_defaults(call: Node, source: torch.dtype | None) -> None:
    """Write the numbers into ``call``, given the dtype that its first argument had in the model."""
    bound: dict[str, object] | None = None
    for argument, number in _DEFAULTS.get(operator_name(call), {}).items():
        bound = bind(call) if bound is None else bound
        if bound.get(argument) is not None:
            continue
        if source is None:
            raise VerificationError(
                f"{call.name} leaves {argument} to its input's dtype, which the graph does not record."
            )
        if source.is_floating_point:
            replace_argument(call, argument, number(source))


def _compute_eps(dtype: torch.dtype) -> float:
    # Measured: rms_norm takes eps from the dtype it computes in, which is float32 for half and bfloat16.
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def _largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max


def _smallest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).min


_DEFAULTS: dict[str, dict[str, Callable[[torch.dtype], float]]] = {
    "aten::rms_norm": {"eps": _compute_eps},
    "aten::_fused_rms_norm": {"eps": _compute_eps},
    "aten::nan_to_num": {"posinf": _largest, "neginf": _smallest},
    "aten::nan_to_num_": {"posinf": _largest, "neginf": _smallest},
}
