"""SimpleRMSNorm: a vector over its root mean square, without parameters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfuse.errors import OptionError
from normfuse.nn.inputs import check_last
from normfuse.nn.options import check_count, check_eps, listed
from normfuse.nn.precision import cast, widened

__all__ = ["SimpleRMSNorm"]

_FORMS = ("inside", "outside", "clamp")


class SimpleRMSNorm(nn.Module):
    """``y = x / (|x| / sqrt(d))`` over the last axis, of size ``d``.

    From "TransNormerLLM: A Faster and Better Large Language Model with Improved TransNormer" (Qin et al.
    2023, arXiv 2307.14995, section 3, SimpleRMSNorm). The paper has no eps; ``eps_form`` says where it
    stands:

    - ``"inside"``: ``x / sqrt(mean(x^2) + eps)``, an RMSNorm without a weight;
    - ``"outside"``: ``x / (sqrt(mean(x^2)) + eps)``;
    - ``"clamp"``: ``sqrt(d) x / max(|x|, eps)``, the paper's function wherever ``|x| >= eps``.

    A vector of zeros gives zeros in each of them. Training and evaluation compute the same.

    Shape: ``(..., d)`` to the same. Statistics are taken in float32 for half precision, and the result has
    the dtype of the input.

    Args:
        normalized_shape: ``d``.
        eps: more than zero.
        eps_form: where it stands.
        device, dtype: as in every layer; there is nothing to put there.

    Raises:
        OptionError: from the constructor, for a size, an eps or a form that does not exist.
        InputError: from the call, for a last axis of another size or values that are not floating-point.
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-6,
        *,
        eps_form: str = "inside",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = check_count(self, "normalized_shape", normalized_shape)
        if eps_form not in _FORMS:
            raise OptionError(f"SimpleRMSNorm: eps_form is one of {', '.join(_FORMS)}, not {eps_form!r}")
        self.eps = check_eps(self, eps)
        self.eps_form = eps_form

    def forward(self, x: Tensor) -> Tensor:
        check_last(self, x, self.normalized_shape)
        if self.eps_form == "inside":
            return F.rms_norm(x, (self.normalized_shape,), None, self.eps)
        z, root = widened(x), math.sqrt(self.normalized_shape)
        # Not the root of a mean: its derivative at zero is infinite, that of a length is taken as zero.
        length: Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        if self.eps_form == "outside":
            return cast(z / (length / root + self.eps), x.dtype)
        return cast(z / length.clamp_min(self.eps) * root, x.dtype)

    def extra_repr(self) -> str:
        return listed(self, "normalized_shape", "eps", "eps_form")
