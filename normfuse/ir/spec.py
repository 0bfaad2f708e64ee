"""What a norm is: a description that leaves the spelling out.

    y = cast(scale * (x - centred * mean(x)) / root(mean((x - ...)**2) + eps) + shift)

A ``crms_norm`` is the RMSNorm of a d-vector without a mean that is stored in d - 1 coordinates z. In the
basis ``"drop_last"`` the coordinate that is left out is ``-sum(z)``, in ``"orthonormal"`` lengths are kept:

    y = cast(scale * z / root((sum(z**2) + sum(z)**2) / d + eps) + shift)          drop_last
    y = cast(scale * z / root(mean(z**2) + eps) + shift)                           orthonormal

(Jiang et al. 2023, arXiv 2305.14858). Two norms with equal descriptions and equal operands are the same
function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = ["KINDS", "NormSpec"]

KINDS = (
    "layer_norm",
    "rms_norm",
    "crms_norm",
    "batch_norm",
    "group_norm",
    "instance_norm",
    "unified_norm",
    "power_norm",
    "rep_batch_norm",
    "weight_standardization",
    "evo_norm",
    "l2_norm",
    "unknown_norm",
)


@dataclass(frozen=True)
class NormSpec:
    """The meaning of one norm, free of graph nodes; hashable, comparable.

    Attributes:
        kind: one of :data:`KINDS`.
        dims: normalized dimensions, counted from the end, sorted, e.g. ``(-1,)``.
        eps: added to the mean square; None when it is an operand of the graph.
        eps_mode: ``"inside"`` the root, ``"outside"`` of it, or ``"clamp"``.
        divisor: what the sum of squares is divided by; None for the number of elements, which includes
            the one that the basis ``"drop_last"`` does not store.
        statistics: ``"input"``, ``"stored"`` in buffers, or ``"computed"`` elsewhere in the graph.
        groups: number of groups that share no statistics along the normalized dimension.
        source_dtype: dtype of the normalized input.
        compute_dtype: dtype of the statistics and of the division.
        scale_dtype: dtype to which the normalized value is rounded before the scale; equal to
            ``compute_dtype`` where nothing is rounded in between.
        out_dtype: dtype of the result.
        has_scale, has_shift: whether a weight and a bias follow.
        weight_offset: constant added to the weight, 1.0 in Gemma's convention.
        post_factor: number that multiplies the result.
        affine_dims: dimensions along which weight and bias vary where those are not ``dims``, e.g.
            ``(-2, -1)`` for one weight vector for each head.
        statistics_dtype: dtype of the sums where they are rounded to ``compute_dtype`` only afterwards.
        factor_dtype: dtype to which the inverse root is rounded before it multiplies the input.
        returns: ``"value"``, or ``"factor"`` where the norm is the inverse root alone, which the model
            multiplies with a linear image of the input.
        stored: further operands: ``"mean"``, ``"variance"``, and ``"skip"``, the factor with which the
            input itself is added to the result.
        basis: of a ``crms_norm``, the coordinates of its input: ``"drop_last"`` or ``"orthonormal"``.
    """

    kind: str
    dims: tuple[int, ...]
    eps: float | None
    source_dtype: torch.dtype
    compute_dtype: torch.dtype
    scale_dtype: torch.dtype
    out_dtype: torch.dtype
    has_scale: bool = False
    has_shift: bool = False
    eps_mode: str = "inside"
    divisor: int | None = None
    statistics: str = "input"
    groups: int = 1
    weight_offset: float = 0.0
    post_factor: float = 1.0
    affine_dims: tuple[int, ...] = ()
    statistics_dtype: torch.dtype | None = None
    factor_dtype: torch.dtype | None = None
    returns: str = "value"
    stored: tuple[str, ...] = ()
    basis: str = ""

    @property
    def centred(self) -> bool:
        """Whether the mean over ``dims`` is removed."""
        return self.kind == "layer_norm"

    @property
    def is_stored(self) -> bool:
        """Whether the norm is one scale and one shift per channel, whatever it reads."""
        return self.statistics in ("stored", "computed")

    @property
    def sum_dtype(self) -> torch.dtype:
        """The dtype of the sums."""
        return self.statistics_dtype or self.compute_dtype

    @property
    def has_affine(self) -> bool:
        """Whether a weight, a bias or a number follows the core."""
        return self.has_scale or self.has_shift or self.post_factor != 1

    @property
    def core(self) -> NormSpec:
        """The norm without its weight and bias, and the number behind them."""
        return replace(
            self, has_scale=False, has_shift=False, weight_offset=0.0, post_factor=1.0, affine_dims=()
        )

    def as_kind(self, kind: str) -> NormSpec:
        """The same norm with another kind of centring."""
        return replace(self, kind=kind, basis="")

    def in_basis(self, basis: str) -> NormSpec:
        """The ``crms_norm`` that reads what this norm read in d - 1 coordinates of the zero-mean space.

        ``eps`` stays: in the basis ``"orthonormal"``, ``eps * d / (d - 1)`` is to be put into its place.
        """
        return replace(self, kind="crms_norm", basis=basis)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for reports; dtypes as ``"float32"``."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("dims", "affine_dims", "stored"):
            plain[name] = list(plain[name])
        for name, value in plain.items():
            if isinstance(value, torch.dtype):
                plain[name] = str(value).removeprefix("torch.")
        return plain
