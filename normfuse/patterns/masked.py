"""Statistics of what a mask lets through: found so that such a norm is refused by name.

    mean = sum(where(mask, x, 0)) / sum(mask)

No rewrite of an unmasked norm is exact for it.
"""

from __future__ import annotations

from torch.fx import Node

from normfuse.ir.calls import aten, bind
from normfuse.ir.changed import changed
from normfuse.patterns.facts import Fact, Facts, Stage, transfer

__all__ = ["CODE", "masked"]

CODE = "masked_statistics"


@transfer(aten.where.self, aten.where.ScalarOther)
def chosen(node: Node, facts: Facts) -> Fact | None:
    return _masked(bind(node)["self"], facts)


@transfer(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def filled(node: Node, facts: Facts) -> Fact | None:
    return _masked(node.args[0], facts)


def _masked(value: object, facts: Facts) -> Fact | None:
    fact = facts.at(value, Stage.SOURCE, Stage.SQUARE)
    if fact is None or fact.flaw not in ("", CODE) or not isinstance(value, Node):
        return None
    return changed(fact, stage=Stage.MASKED, root=value)


def masked(value: object, facts: Facts) -> Fact | None:
    """What is below the mask, marked."""
    fact = facts.at(value, Stage.MASKED)
    inner = None if fact is None else facts.at(fact.root, Stage.SOURCE, Stage.SQUARE)
    return None if inner is None else changed(inner, flaw=CODE)
