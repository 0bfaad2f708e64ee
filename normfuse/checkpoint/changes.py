"""What becomes of the modules of a class, as plain values that a file can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Changes", "NormModule"]

_KINDS = ("rms_norm", "layer_norm")


@dataclass(frozen=True)
class NormModule:
    """A norm over the last axis of this width; see :class:`normfuse.checkpoint.modules.Norm`."""

    kind: str
    width: int
    eps: float
    has_weight: bool
    has_bias: bool

    @classmethod
    def decoded(cls, held: Mapping[str, Any]) -> NormModule:
        """From plain values.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        made = cls(*(held[name] for name in ("kind", "width", "eps", "has_weight", "has_bias")))
        if held["kind"] not in _KINDS or type(held["width"]) is not int or made.width < 1:
            raise ValueError(f"a norm of the kind {made.kind!r} and the width {made.width!r}")
        if type(made.eps) not in (int, float) or not -1e30 < made.eps < 1e30:
            raise ValueError(f"a norm with eps {made.eps!r}")
        if not {type(made.has_weight), type(made.has_bias)} <= {bool}:
            raise TypeError("has_weight and has_bias are true or false")
        return made


@dataclass(frozen=True)
class Changes:
    """Modules by path: ``norms`` are replaced, ``centred`` are lookups whose results lose their mean,
    ``biased`` are layers that get a bias, and ``removed`` are norms that do nothing any more.
    """

    norms: Mapping[str, NormModule] = field(default_factory=dict)
    centred: tuple[str, ...] = ()
    biased: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def added(self) -> tuple[str, ...]:
        """Names of the parameters that the class does not have."""
        return tuple(f"{path}.bias" for path in self.biased)
