"""adaLN and adaLN-Zero: a LayerNorm whose scale and shift, and a gate, are functions of a condition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfuse.errors import InputError
from normfuse.nn.inputs import check_last, check_tensor
from normfuse.nn.options import check_count, check_eps, listed
from normfuse.nn.precision import cast

__all__ = ["AdaptiveLayerNorm", "AdaptiveLayerNormZero"]


class _Adaptive(nn.Module):
    """LayerNorm without parameters, and the linear map of the condition."""

    def __init__(
        self,
        normalized_shape: int,
        condition_features: int,
        pieces: int,
        eps: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.normalized_shape = check_count(self, "normalized_shape", normalized_shape)
        self.condition_features = check_count(self, "condition_features", condition_features)
        self.pieces, self.eps = pieces, check_eps(self, eps)
        self.modulation = nn.Linear(condition_features, pieces * normalized_shape, device=device, dtype=dtype)

    def _pieces(self, x: Tensor, condition: Tensor) -> list[Tensor]:
        check_last(self, x, self.normalized_shape)
        wanted = (x.shape[0], self.condition_features)
        check_tensor(self, "condition", condition)
        if x.dim() < 2 or tuple(condition.shape) != wanted:
            raise InputError(
                f"{type(self).__name__} takes (N, ..., {self.normalized_shape}) and a condition of "
                f"(N, {self.condition_features}), not {tuple(x.shape)} and {tuple(condition.shape)}"
            )
        made = self.modulation(F.silu(condition))
        between = [1] * (x.dim() - 2)
        return list(made.unflatten(1, (*between, -1)).chunk(self.pieces, dim=-1))

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normalized = F.layer_norm(x, (self.normalized_shape,), None, None, self.eps)
        return cast(normalized * (1 + scale) + shift, x.dtype)

    def extra_repr(self) -> str:
        return listed(self, "normalized_shape", "condition_features", "eps")


class AdaptiveLayerNorm(_Adaptive):
    """``y = LN(x) (1 + scale(c)) + shift(c)`` with ``[shift, scale] = W silu(c) + b``.

    From "Scalable Diffusion Models with Transformers" (Peebles, Xie 2023, arXiv 2212.09748, section 3.2,
    adaLN). LN has no weight and no bias of its own. Training and evaluation compute the same.

    Shape: ``(N, ..., d)`` and a condition of ``(N, condition_features)`` to the shape of the first. The
    result has the dtype of the input.

    Args:
        normalized_shape: ``d``.
        condition_features: the size of the condition.
        eps: inside of the root.

    Raises:
        OptionError: from the constructor, for an option that is out of range.
        InputError: from the call, for a last axis or a condition of another shape.
    """

    def __init__(
        self,
        normalized_shape: int,
        condition_features: int,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, condition_features, 2, eps, device, dtype)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self._pieces(x, condition)
        return self._modulated(x, shift, scale)


class AdaptiveLayerNormZero(_Adaptive):
    """``y = LN(x) (1 + scale(c)) + shift(c)`` and a ``gate(c)`` for what is made of y.

    From "Scalable Diffusion Models with Transformers" (Peebles, Xie 2023, arXiv 2212.09748, section 3.2,
    adaLN-Zero): ``[shift, scale, gate] = W silu(c) + b`` with W and b of zeros to begin with, and the block
    is ``x + gate * F(y)``, so that it starts as the identity. Training and evaluation compute the same.

    Shape: as in :class:`AdaptiveLayerNorm`; the call returns ``(y, gate)``, the gate of shape
    ``(N, 1, ..., d)``. Args and errors: as there.
    """

    def __init__(
        self,
        normalized_shape: int,
        condition_features: int,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, condition_features, 3, eps, device, dtype)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale, gate = self._pieces(x, condition)
        return self._modulated(x, shift, scale), gate
