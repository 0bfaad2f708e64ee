"""``normfuse.convert``: norms over the last axis become trainable layers with running statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from normfuse.convert.plan import Entry, plan_for
from normfuse.convert.swap import Swap
from normfuse.convert.targets import check_target
from normfuse.errors import InputError, OptionError
from normfuse.nn import ProgressiveNorm

__all__ = ["Conversion", "convert"]


@dataclass(frozen=True)
class Conversion:
    """What ``normfuse.convert`` did.

    Attributes:
        to: the layer that norms became.
        converted: one entry for each norm that was replaced.
        kept: one entry for each that was not, with the reason.
    """

    to: str
    converted: tuple[Entry, ...]
    kept: tuple[Entry, ...]
    _swap: Swap

    def revert(self) -> None:
        """Put the norms back that were there before, with the weights that they had.

        Raises:
            InputError: where the model has other modules in the places of the new ones by now.
        """
        self._swap.remove()

    def __str__(self) -> str:
        count = len(self.converted)
        lines = [f"{count} {'norm' if count == 1 else 'norms'} converted to {self.to}, {len(self.kept)} kept"]
        return "\n".join([*lines, *(f"  {entry}" for entry in (*self.converted, *self.kept))])


def convert(
    model: nn.Module,
    to: str = "unified_norm",
    *,
    progressive: bool = False,
    warm: int = 0,
    step: int = 300_000,
    r0: float = 1.0,
    only: Sequence[str] | None = None,
    also: Sequence[type[nn.Module]] = (),
    **options: Any,
) -> Conversion:
    """Replace LayerNorms and RMSNorms of ``model``, in place, by layers that a compiler can fold after
    training.

    The new layers have the weight and the bias of the old ones and statistics as at the start, so the model
    computes something else afterwards and has to be trained; :func:`normfuse.calibrate` finds statistics
    without training, and says how far off the result is. Make the optimizer after the conversion: the
    parameters are new ones.

    Args:
        model: of torch.nn's modules; see :mod:`normfuse.convert.affine` for what counts as a norm.
        to: ``"unified_norm"``, ``"power_norm"``, ``"rep_batch_norm"`` or ``"batch_norm"``.
        progressive: whether the old norm goes over into the new one in the course of training, as
            :class:`normfuse.nn.ProgressiveNorm` with ``warm``, ``step`` and ``r0``.
        only: patterns of module names, such as ``"encoder.*"``; others are kept.
        also: classes that are norms over the last axis, with ``weight`` and perhaps ``bias``, on your word.
        options: of the new layers, for example ``window_size=8``. ``eps`` is that of the new layer, since it
            is added to another quantity.

    Returns:
        What became of each norm. Norms that a mask should reach have to be given one in the model's code: the
        new layers take ``pad_mask``, and count padding as tokens without it.

    Raises:
        InputError: when nothing can be converted, with the reasons; the model is unchanged.
        OptionError: for a layer or an option that does not exist.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"convert takes an nn.Module, not {type(model).__name__}")
    check_target(to, options)
    if not progressive and (warm, step, r0) != (0, 300_000, 1.0):
        raise OptionError("warm, step and r0 are those of a schedule: they go with progressive=True")

    def wrap(old: nn.Module, new: nn.Module) -> nn.Module:
        return ProgressiveNorm(old, new, warm, step, r0) if progressive else new

    plan = plan_for(model, to, options, only, also, wrap)
    plan.check(f"converted to {to}")
    swap = Swap(model, plan.replacements)
    swap.install()
    return Conversion(to, tuple(plan.converted), tuple(plan.kept), swap)
