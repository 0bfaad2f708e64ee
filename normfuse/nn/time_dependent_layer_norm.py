"""Time-dependent LayerNorm: its weight and bias move between two values each as time goes by."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfuse.errors import InputError
from normfuse.nn.inputs import check_last, check_tensor
from normfuse.nn.options import check_count, check_eps, listed
from normfuse.nn.precision import cast, widened

__all__ = ["TimeDependentLayerNorm", "TimeDependentParameter"]


class TimeDependentParameter(nn.Module):
    """``p(t) = s first + (1 - s) second`` with ``s = sigmoid(gate_weight t + gate_bias)``, for each entry.

    It starts at one value whatever the time is. The authors let no weight decay pull at the gate.
    """

    def __init__(
        self,
        size: int,
        start: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        values = torch.full((size,), start, device=device, dtype=dtype)
        self.first = nn.Parameter(values)
        self.second = nn.Parameter(values.clone())
        self.gate_weight = nn.Parameter(torch.ones_like(values))
        self.gate_bias = nn.Parameter(torch.zeros_like(values))

    def forward(self, time: Tensor) -> Tensor:
        s = torch.sigmoid(widened(time)[:, None] * self.gate_weight + self.gate_bias)
        return s * self.first + (1 - s) * self.second


class TimeDependentLayerNorm(nn.Module):
    """``y = weight(t) N(x) + bias(t)`` over the last axis, N a LayerNorm or an RMSNorm.

    From "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion Models and Time-Dependent
    Layer Normalization" (Liu et al. 2024, arXiv 2406.09416, section 3, TD-LN). ``weight(t)`` and ``bias(t)``
    are :class:`TimeDependentParameter`. With ``rms=True``, as in the authors' released models,
    ``N(x) = x / (sqrt(mean(x^2)) + eps)``, with eps outside of the root, 1e-8 and no bias.
    Training and evaluation compute the same, so one ``t`` for all samples makes it a plain norm.

    Shape: ``(N, ..., d)`` and a time of ``(N,)`` or ``(1,)`` to the shape of the first. The authors' time is
    a quarter of the logarithm of the signal to noise ratio. Statistics are taken in float32 for half
    precision, and the result has the dtype of the input.

    Args:
        normalized_shape: ``d``.
        eps: 1e-5, and 1e-8 for RMS.
        rms: normalize by the root mean square.
        bias: whether there is a bias; by default for LayerNorm only.

    Raises:
        OptionError: from the constructor, for an option that is out of range.
        InputError: from the call, for a last axis of another size, a time of another shape, or values that
            are not floating-point.
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float | None = None,
        *,
        rms: bool = False,
        bias: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = check_count(self, "normalized_shape", normalized_shape)
        self.eps = check_eps(self, (1e-8 if rms else 1e-5) if eps is None else eps)
        self.rms = rms
        has_bias = not rms if bias is None else bias
        self.weight = TimeDependentParameter(normalized_shape, 1.0, device, dtype)
        self.bias = TimeDependentParameter(normalized_shape, 0.0, device, dtype) if has_bias else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        check_last(self, x, self.normalized_shape)
        check_tensor(self, "time", time)
        if x.dim() < 2 or time.dim() != 1 or time.shape[0] not in (1, x.shape[0]):
            raise InputError(
                f"TimeDependentLayerNorm takes (N, ..., d) and a time of (N,) or (1,), not "
                f"{tuple(x.shape)} and {tuple(time.shape)}"
            )
        between = [1] * (x.dim() - 2)
        y: Tensor = self._normalized(widened(x)) * self.weight(time).unflatten(0, (-1, *between))
        if self.bias is not None:
            y = y + self.bias(time).unflatten(0, (-1, *between))
        return cast(y, x.dtype)

    def _normalized(self, z: Tensor) -> Tensor:
        if not self.rms:
            return F.layer_norm(z, (self.normalized_shape,), None, None, self.eps)
        length: Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return z / (length / math.sqrt(self.normalized_shape) + self.eps)

    def extra_repr(self) -> str:
        return listed(self, "normalized_shape", "eps", "rms")
