"""How an operator's output channels come from its inputs: the answers of the operator table."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from normfuse.analysis.channel_map import Trait
from normfuse.report import Refusal

__all__ = ["Blocks", "Carries", "Flow", "Scales", "Vanishes"]


@dataclass(frozen=True)
class Carries:
    """``M op(a, b, ...) = op(M a, M b, ...)`` on the named axes of the named operands.

    ``table`` says that the operand is a lookup table, which holds more rows than are ever read.
    """

    operands: tuple[tuple[Node, int], ...]
    needs: Trait = Trait.LINEAR
    table: bool = False


@dataclass(frozen=True)
class Scales:
    """``op(a) = diag(scale) a``: a diagonal joins the map that is being pushed."""

    operand: Node
    axis: int
    scale: Node


@dataclass(frozen=True)
class Vanishes:
    """The output is zero along the axis, and a linear map leaves zero as it is."""


@dataclass(frozen=True)
class Blocks:
    """The map cannot be pushed through this operator."""

    refusal: Refusal


Flow = Carries | Scales | Vanishes | Blocks
