"""What is to become of the weights that a map goes into, and of the operators on the way to them.

A plan is a tree: operators that are written anew, down to the weights that take maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from normfuse.analysis.channel_map import ChannelMap
from normfuse.errors import InvariantError
from normfuse.ir.sizes import static_size

__all__ = [
    "Constant",
    "Kept",
    "Leaf",
    "Maps",
    "Plan",
    "Rebuilt",
    "Redirected",
    "leaves_of",
    "linear_parts",
    "merged",
    "redirected",
    "resized",
    "transposed",
]

Maps = tuple[ChannelMap, ...]


@dataclass(frozen=True)
class Leaf:
    """Apply ``maps``, innermost first, to a weight value along ``axis``.

    With ``groups``, axis 0 is that many runs, and the channels of each continue those of the one before.
    """

    node: Node
    axis: int
    maps: Maps
    groups: int = 1


@dataclass(frozen=True)
class Constant:
    """What ``maps`` make of zero: a vector with one entry per channel of ``like`` along ``axis``."""

    like: Node
    axis: int
    maps: Maps
    groups: int = 1


@dataclass(frozen=True)
class Rebuilt:
    """The same operator with some operands replaced, and with a bias where it had none.

    ``resized`` is the axis and the size that the maps give it, where they change the number of channels.
    """

    node: Node
    operands: tuple[tuple[Node, Plan], ...]
    bias: tuple[str, Constant] | None = None
    resized: tuple[int, int] | None = None


@dataclass(frozen=True)
class Kept:
    """The value needs no change but that of its size: it is zero along the axis."""

    node: Node
    resized: tuple[int, int] | None = None


@dataclass(frozen=True)
class Redirected:
    """``node`` stays, and everything that reads ``operand`` reads the planned value instead."""

    node: Node
    operand: Node
    plan: Plan


Plan = Leaf | Constant | Rebuilt | Kept | Redirected


def leaves_of(plan: Plan) -> Iterator[Leaf]:
    """The weights that a plan changes."""
    if isinstance(plan, Leaf):
        yield plan
    elif isinstance(plan, Redirected):
        yield from leaves_of(plan.plan)
    elif isinstance(plan, Rebuilt):
        for _, deeper in plan.operands:
            yield from leaves_of(deeper)


def redirected(plan: Plan) -> list[Redirected]:
    """Where a plan changes a part of a value for all readers, one entry for each such part."""
    if isinstance(plan, Redirected):
        return [plan, *redirected(plan.plan)]
    operands = plan.operands if isinstance(plan, Rebuilt) else ()
    return [found for _, operand in operands for found in redirected(operand)]


def merged(plans: Sequence[Plan]) -> Plan:
    """One plan for several parts of a value: each leaves the channels of all others as they are."""
    first = plans[0]
    if len(plans) == 1 or isinstance(first, Kept):
        return first
    if isinstance(first, Rebuilt) and all(isinstance(p, Rebuilt) and p.node is first.node for p in plans):
        held: list[dict[Node, Plan]] = [dict(p.operands) for p in plans if isinstance(p, Rebuilt)]
        return replace(first, operands=tuple((o, merged([h[o] for h in held])) for o in held[0]))
    if isinstance(first, Redirected) and all(isinstance(p, Redirected) for p in plans):
        return replace(first, plan=merged([p.plan for p in plans if isinstance(p, Redirected)]))
    if isinstance(first, Leaf) and all(isinstance(p, Leaf) and p.node is first.node for p in plans):
        return replace(first, maps=tuple(m for p in plans if isinstance(p, Leaf) for m in p.maps))
    raise InvariantError("parts of one value are planned in different ways")


def resized(node: Node, axis: int, maps: Maps) -> tuple[int, int] | None:
    """The axis, and the size that the maps give it, where that is another one."""
    before = static_size(node, axis)
    if before is None:
        return None
    width = before
    for mapping in maps:
        width = mapping.width(width)
    return None if width == before else (axis, width)


def linear_parts(maps: Maps) -> Maps:
    """The maps without their shifts."""
    return tuple(m.linear_part() for m in maps)


def transposed(maps: Maps) -> Maps:
    """What the columns of a weight take that reads the maps of a value."""
    return tuple(m.transposed() for m in reversed(maps))
