"""Operators that sum products over axes, each described once for what it writes and for what it reads.

    out[n, o] = sum over i of data[n, i] * weight[o, i], plus bias[o]

A map along ``o`` goes to the one operand that has ``o``; a map along ``i`` of the data goes, transposed, to
the one other operand that has ``i``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

from torch.fx import Node

from normfuse.analysis.channel_map import Trait
from normfuse.analysis.flow import Carries, Flow, Shift
from normfuse.analysis.operator_table import Row, block, row
from normfuse.ir.calls import bind, known_as
from normfuse.ir.location import described
from normfuse.ir.sizes import same, shape_of
from normfuse.report import Refusal

__all__ = ["CONTRACTIONS", "Contraction", "Factor", "Reading", "contracts", "reading"]


@dataclass(frozen=True)
class Factor:
    """An operand of a product: its name for ``set_arguments``, and one letter for each of its axes."""

    name: str
    node: Node
    letters: str


@dataclass(frozen=True)
class Contraction:
    """A sum of products over every letter that ``out`` lacks, as in an einsum, plus ``addend``.

    Attributes:
        bias: the argument that is added, empty where the operator has none, and the letters it may have.
        addend: what that argument is in this call.
        adds: whether the addend counts once.
        multiplies: whether the products count more or less than once.
        windows: letters of axes along which a window moves, so that they are not summed over as a whole.
        groups: the number of runs on the weight's first axis that read channels of their own.
        no_shift: why what a shift of the data becomes is not the same at every position, where that is so.
    """

    factors: tuple[Factor, ...]
    out: str
    bias: tuple[str, str] = ("", "")
    addend: Factor | None = None
    adds: bool = True
    multiplies: bool = False
    windows: str = ""
    groups: int = 1
    no_shift: Refusal | None = None


@dataclass(frozen=True)
class Reading:
    """The operand that contracts a value's channels, along its ``axis``.

    Of a shift along that axis it makes a sum over its axes ``summed``, with its axes ``kept`` and the sizes
    ``shape``; ``no_shift`` says why the operator's ``bias`` cannot take that, if so.
    """

    weight: Factor
    axis: int
    groups: int
    needs: Trait
    summed: tuple[int, ...]
    kept: tuple[int, ...]
    shape: tuple[Any, ...]
    bias: str
    no_shift: Refusal | None


_Relation = Callable[[Node, dict[str, Any]], Contraction | None]
CONTRACTIONS: dict[object, _Relation] = {}


def contracts(*targets: object) -> Callable[[_Relation], Row]:
    """Register what some operators contract; None where a call of theirs is something else."""

    def register(function: _Relation) -> Row:
        @wraps(function)
        def written(node: Node, bound: dict[str, Any], axis: int) -> Flow:
            found = function(node, bound)
            return _per_row(node) if found is None else _written(node, found, axis)

        CONTRACTIONS.update(dict.fromkeys(targets, function))
        return row(*targets)(written)

    return register


def _per_row(node: Node) -> Flow:
    return block(node, "channel_mix", f"the channels of {described(node)} are not its output features")


def _written(node: Node, found: Contraction, axis: int) -> Flow:
    """The operand that has the output's letter, and the addend's axis of that letter."""
    letter = found.out[axis]
    holders = [f for f in found.factors if letter in f.letters]
    if len(holders) != 1 or holders[0].letters.count(letter) > 1 or found.out.count(letter) > 1:
        return _per_row(node)
    inner = holders[0].letters.index(letter)
    made = Carries(((holders[0].node, inner),))
    if found.groups > 1:
        made = replace(made, needs=Trait.DIAGONAL, groups=found.groups if inner > 0 else 1)
    if found.addend is not None:
        return _with_addend(node, made, found.addend, found, axis)
    name, letters = found.bias
    return replace(made, shift=Shift.ONCE, bias=name) if letter in letters else made


def _with_addend(node: Node, made: Carries, addend: Factor, found: Contraction, axis: int) -> Flow:
    letter = found.out[axis]
    if addend.letters and letter not in addend.letters:
        return _per_row(node)
    under = addend.letters.find(letter)
    if under < 0 or not same((shape_of(addend.node) or ())[under], (shape_of(node) or ())[axis]):
        return block(node, "constant_added", f"{described(node)} adds one value to all channels")
    operands = (*made.operands, (addend.node, under))
    return replace(made, operands=operands, shift=Shift.ONCE, adders=(addend.node,) if found.adds else ())


def reading(node: Node, value: Node, axis: int) -> Reading | None:
    """How an operator contracts the channels of a value; None where it does something else with them."""
    relation = CONTRACTIONS.get(known_as(node))
    found = None if relation is None else relation(node, bind(node))
    own = [] if found is None else [f for f in found.factors if f.node is value]
    if found is None or len(own) != 1:
        return None
    letter = own[0].letters[axis]
    others = [f for f in found.factors if f is not own[0] and letter in f.letters]
    if letter in found.out or len(others) != 1:
        return None
    if own[0].letters.count(letter) > 1 or others[0].letters.count(letter) > 1:
        return None
    return _reading(node, found, own[0], others[0], letter)


def _reading(node: Node, found: Contraction, own: Factor, weight: Factor, letter: str) -> Reading | None:
    axis = weight.letters.index(letter)
    groups = found.groups if axis > 0 else 1
    sizes, channels = shape_of(weight.node) or (), (shape_of(own.node) or ())[own.letters.index(letter)]
    if not sizes or not same(sizes[axis] * groups, channels):
        return None
    made = [one for one in found.out if one in weight.letters]
    kept = tuple(weight.letters.index(one) for one in made)
    summed = tuple(d for d in range(len(sizes)) if d != axis and d not in kept)
    beside = [one for one in found.out if one in found.bias[1]]
    while beside and beside[0] not in made:
        beside.pop(0)
    shape = tuple(sizes[weight.letters.index(one)] if one in made else 1 for one in beside)
    needs = Trait.LINEAR if found.groups == 1 else Trait.DIAGONAL
    no_shift = found.no_shift or _no_bias(node, found, own, weight)
    return Reading(weight, axis, groups, needs, summed, kept, shape, found.bias[0], no_shift)


def _no_bias(node: Node, found: Contraction, own: Factor, weight: Factor) -> Refusal | None:
    """Why no bias stands for what a shift becomes: the sum then depends on the weight alone."""
    letters = found.bias[1]
    counted = set(own.letters) - set(found.out + weight.letters + found.windows)
    made = [one for one in weight.letters if one in found.out]
    plain = found.adds and not found.multiplies and len(found.factors) == 2 and not counted
    if plain and made and all(one in letters for one in made):
        return None
    message = f"{described(node)} has no bias of its own that could take the shift"
    return Refusal("no_bias", message, node.name)
