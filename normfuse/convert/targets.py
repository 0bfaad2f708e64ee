"""The trainable layers that a norm can become, made with the weight and the bias of the norm."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normfuse.convert.affine import Affine
from normfuse.errors import OptionError
from normfuse.nn import BatchNorm, PowerNorm, RepBatchNorm, UnifiedNorm
from normfuse.options import unknown_name

__all__ = ["TARGETS", "check_target", "made"]

TARGETS: dict[str, type[nn.Module]] = {
    "batch_norm": BatchNorm,
    "power_norm": PowerNorm,
    "rep_batch_norm": RepBatchNorm,
    "unified_norm": UnifiedNorm,
}
#: Decided by the norm that is replaced.
_GIVEN = ("self", "num_features", "affine", "device", "dtype")


def check_target(to: str, options: Mapping[str, Any]) -> None:
    """Refuse a layer that does not exist, and options that it does not take, before anything is done.

    Raises:
        OptionError: naming the nearest one.
    """
    if to not in TARGETS:
        raise unknown_name("layer", str(to), TARGETS)
    known = [name for name in inspect.signature(TARGETS[to]).parameters if name not in _GIVEN]
    for name in options:
        if name in _GIVEN:
            raise OptionError(f"{name} comes from the norm that is replaced; leave it out")
        if name not in known:
            raise unknown_name(f"option of {to}", name, known)


def made(to: str, affine: Affine, like: Tensor, options: Mapping[str, Any]) -> nn.Module:
    """A layer with this weight and bias, on the device of ``like``; statistics are in float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    layer = TARGETS[to](affine.num_features, device=like.device, dtype=dtype, **options)
    inner: Any = layer.bn if isinstance(layer, RepBatchNorm) else layer
    inner.weight = _parameter(affine.weight, torch.ones_like(inner.weight, dtype=like.dtype))
    inner.bias = _parameter(affine.bias, torch.zeros_like(inner.bias, dtype=like.dtype))
    return layer


def _parameter(value: Tensor | None, otherwise: Tensor) -> nn.Parameter:
    if value is None:
        return nn.Parameter(otherwise.detach())
    trains = value.requires_grad or not isinstance(value, nn.Parameter)
    return nn.Parameter(value.detach().clone(), requires_grad=trains)
