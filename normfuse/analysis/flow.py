"""How an operator's output channels come from its inputs: the answers of the operator table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch.fx import Node

from normfuse.analysis.channel_map import Trait
from normfuse.report import Refusal

__all__ = ["Blocks", "Carries", "Flow", "Scales", "Shift", "Vanishes"]


class Shift(Enum):
    """How ``op(a, b, ...) + t`` is written with shifted operands, where ``t`` has one number per channel."""

    NOWHERE = "blocks"
    EVERYWHERE = "passes"  # op(a + t, b + t, ...), every carried operand
    ONCE = "absorbs"  # op(a, b + t, ...), one of the named operands, or a bias that is made for it


@dataclass(frozen=True)
class Carries:
    """``M op(a, b, ...) = op(M a, M b, ...)`` on the named axes of the named operands.

    ``table`` says that the operand is a lookup table, which holds more rows than are ever read. With
    ``groups``, the first axis of the first operand is ``groups`` runs, each of which has channels of its
    own. A shift goes where ``shift`` says, ONCE into one of ``adders`` (operands that are read once) or
    into the missing argument ``bias``. ``factor`` is the number that the operator multiplies by, where that
    is all it does.
    """

    operands: tuple[tuple[Node, int], ...]
    needs: Trait = Trait.LINEAR
    table: bool = False
    groups: int = 1
    shift: Shift = Shift.NOWHERE
    adders: tuple[Node, ...] = ()
    bias: str = ""
    factor: float | None = None


@dataclass(frozen=True)
class Scales:
    """``op(a) = diag(scale) a``: a diagonal joins the map that is being pushed."""

    operand: Node
    axis: int
    scale: Node | float


@dataclass(frozen=True)
class Vanishes:
    """The output is zero along the axis, and a linear map leaves zero as it is."""


@dataclass(frozen=True)
class Blocks:
    """The map cannot be pushed through this operator."""

    refusal: Refusal


Flow = Carries | Scales | Vanishes | Blocks
