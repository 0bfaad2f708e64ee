"""Which modules are norms over the last axis, and what their weight and bias are.

    LayerNorm:  weight * (x - mean) / sqrt(var + eps) + bias          RMSNorm:  weight * x / sqrt(mean(x^2) +
    eps)

A module counts 1. as ``nn.LayerNorm`` or ``nn.RMSNorm`` over one axis, unless a subclass has a ``forward`` of
its own; 2. as an instance of a class that the caller names, whose ``weight`` and ``bias`` are taken as they
are; 3. when "Norm" is in its class's name, all that it holds is one vector ``weight``, perhaps one vector
``bias``, and a number
   ``variance_epsilon``, ``eps`` or ``epsilon``, and it computes one of the equations on a random input, with
   ``weight`` or ``1 + weight``. The RMSNorms of Hugging Face's models are found so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normfuse.errors import cause

__all__ = ["Affine", "affine_of", "is_norm"]

_EPS = ("variance_epsilon", "eps", "epsilon")


@dataclass(frozen=True)
class Affine:
    """What a norm multiplies by and adds, in its own dtype; None where it does not."""

    num_features: int
    weight: Tensor | None
    bias: Tensor | None


def is_norm(module: nn.Module) -> bool:
    """Whether a report should say something about the module."""
    return "Norm" in type(module).__name__ or isinstance(module, (nn.LayerNorm, nn.RMSNorm))


def affine_of(module: nn.Module, also: tuple[type[nn.Module], ...] = ()) -> Affine | str:
    """Weight and bias of a norm over the last axis, or why the module is not one."""
    if isinstance(module, also):
        return _vouched_for(module)
    for kind in (nn.LayerNorm, nn.RMSNorm):
        if isinstance(module, kind):
            return _of_torch(module, kind)
    return _recognised(module)


def _of_torch(module: nn.LayerNorm | nn.RMSNorm, kind: type[nn.Module]) -> Affine | str:
    if type(module).forward is not kind.forward:
        return f"{type(module).__name__} has a forward of its own; name the class in also= if it is the same"
    if len(module.normalized_shape) != 1:
        return f"it normalizes over {len(module.normalized_shape)} axes"
    bias: Tensor | None = getattr(module, "bias", None)
    return Affine(int(module.normalized_shape[0]), module.weight, bias)


def _vouched_for(module: nn.Module) -> Affine | str:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.dim() != 1:
        return "it has no vector named weight, which says how many channels there are"
    return Affine(len(weight), weight, bias)


def _recognised(module: nn.Module) -> Affine | str:
    name = type(module).__name__
    own = dict(module.named_parameters(recurse=False))
    is_plain = not any(module.children()) and not any(True for _ in module.buffers())
    weight = own.get("weight")
    if is_plain and not own:
        return f"{name} has no weight, which would say how many channels there are"
    if not is_plain or weight is None or not own.keys() <= {"weight", "bias"}:
        return f"{name} is not a norm over the last axis, or holds more than weight and bias"
    eps = next((float(e) for n in _EPS if isinstance(e := getattr(module, n, None), (int, float))), None)
    if eps is None or any(p.dim() != 1 for p in own.values()):
        return f"{name} has no number {', '.join(_EPS[:-1])} or {_EPS[-1]}, or its weight is no vector"
    try:
        found = _matching(module, weight, own.get("bias"), eps)
    except Exception as error:
        return f"{name} does not run on a random input: {cause(error)}"
    return (
        found
        or f"{name} is neither a LayerNorm nor an RMSNorm over the last axis: it computes something else"
    )


@torch.no_grad()
def _matching(module: nn.Module, weight: Tensor, bias: Tensor | None, eps: float) -> Affine | None:
    """The form that gives what the module gives, if one does."""
    make = torch.Generator().manual_seed(0)
    x = (torch.randn(4, len(weight), generator=make) + 0.5).to(weight)
    found = module(x)
    if not isinstance(found, Tensor) or found.shape != x.shape:
        return None
    for scale, expected in _forms(x.double(), weight, bias, eps):
        # Norms of Hugging Face's models compute in float32 whatever comes, and round to the input's dtype.
        allowed = 64 * max(torch.finfo(weight.dtype).eps, 2**-23) * max(1.0, float(expected.abs().max()))
        if (found.double() - expected).abs().max() <= allowed:
            return Affine(len(weight), scale, bias)
    return None


def _forms(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Iterator[tuple[Tensor, Tensor]]:
    rms = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    centred = x - x.mean(-1, keepdim=True)
    layer = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    shift = 0 if bias is None else bias.double()
    for scale in (weight, 1 + weight):
        for normal in (rms, layer):
            yield scale, scale.double() * normal + shift
