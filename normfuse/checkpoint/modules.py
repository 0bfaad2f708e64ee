"""What takes the place of modules of the original class, and nothing else of it changes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from normfuse.checkpoint.changes import Changes
from normfuse.rms_norm import centre, rms_norm

__all__ = ["Norm", "install"]


class Norm(nn.Module):
    """A norm over the last axis, without a mean of its own where its input has none.

        rms_norm      y = x / sqrt(mean(x**2) + eps) * weight + bias
        layer_norm    y = (x - mean(x)) / sqrt(mean((x - mean(x))**2) + eps) * weight + bias

    (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4; Ba et al. 2016, arXiv 1607.06450.) The same in
    training and evaluation. Half precision is computed in float32 and rounded once, at the end.

    Args:
        kind: ``"rms_norm"`` or ``"layer_norm"``.
        width: the size of the last axis.
        eps: as above.
        weight, bias: parameters of shape ``(width,)``, or None.
    """

    def __init__(
        self, kind: str, width: int, eps: float, weight: torch.Tensor | None, bias: torch.Tensor | None
    ) -> None:
        super().__init__()
        self.kind, self.width, self.eps = kind, width, eps
        self.weight = None if weight is None else _parameter(weight)
        self.bias = None if bias is None else _parameter(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "layer_norm":
            return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        return rms_norm(x, self.width, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.width}, eps={self.eps}"


def _parameter(value: torch.Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value)


def install(model: nn.Module, changes: Changes) -> None:
    """Put the norms in, the hooks behind lookups, biases where there were none, and identities for norms that
    are gone.

    Parameters keep their objects, so what is tied stays tied. New biases are zero, where the weight is.
    """
    for path, norm in changes.norms.items():
        old = model.get_submodule(path)
        weight, bias = (
            getattr(old, name) if has else None
            for name, has in (("weight", norm.has_weight), ("bias", norm.has_bias))
        )
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, Norm(norm.kind, norm.width, norm.eps, weight, bias))
    for path in changes.removed:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
    for path in changes.centred:
        model.get_submodule(path).register_forward_hook(centre)
    for path in changes.biased:
        module = model.get_submodule(path)
        weight = module.get_parameter("weight")
        zeros = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
