"""The LayerNorm of values that have no mean, as a module in the place of an ``nn.LayerNorm``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normfuse.rms_norm import rms_norm

__all__ = ["CentredLayerNorm"]

_MARK = "_extra_state"


class CentredLayerNorm(nn.LayerNorm):
    """``y = weight * x / sqrt(mean(x^2) + eps) + bias``, which is LayerNorm where ``mean(x) = 0``.

    :func:`normfuse.apply` makes it of an ``nn.LayerNorm``: the same object with the same parameters, which is
    an ``nn.LayerNorm`` to everything that asks. Its entry in the state dict says that the weights which write
    its values have no mean, and weights that were saved without it are not loaded.

    Shape: ``(..., d)`` to the same, in the dtype that ``nn.LayerNorm`` returns; half precision is computed in
    float32. From Jiang et al. 2023, arXiv 2305.14858, section 3.2.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        x, kind = input, input.device.type
        if kind != "cpu" and torch.is_autocast_enabled(kind):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        return rms_norm(x, self.normalized_shape[0], self.weight, self.bias, self.eps)

    def get_extra_state(self) -> Tensor:
        return torch.ones((), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """There is nothing to set: an entry that is there says enough."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        if f"{prefix}{_MARK}" not in state_dict and any(key.startswith(prefix) for key in state_dict):
            error_msgs.append(
                f"{prefix.rstrip('.')} reads values without a mean since normfuse.apply, and these weights "
                "were saved without; load them into the model as it was, and call normfuse.apply again."
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
