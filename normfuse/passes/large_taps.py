"""Refuse to put values beside a weight into its sum where that costs float32 its precision.

    conv(x) + a x = conv'(x):    every product that is added behind a x rounds at the size of a x

The original rounds at that size once. Where the values beside are larger than what the weight makes of
them, ``|a| > |W|`` in the norms of all entries, the error grows with the number of products: 1.8 times for
``|W| = 0.6 |a|`` and 3.5 times for ``0.06 |a|``, but 1.1 times for ``1.7 |a|``, measured over sums of 64 to
2,304 products. Short sums do not lose, nor do 16-bit values, whose products are added in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.fx import Node

from normfuse.analysis.channel_map import dtype_of
from normfuse.analysis.own_tap import OwnTap
from normfuse.analysis.plan import Leaf
from normfuse.folding import Premise, Question
from normfuse.ir.location import described
from normfuse.ir.program import Program
from normfuse.ir.sizes import shape_of
from normfuse.passes.place import Placement
from normfuse.passes.recipes import recipe_of, value_of
from normfuse.report import Refusal

__all__ = ["refusal_of_large_taps"]

#: Sums of so few products keep their precision: a depthwise kernel of 3 x 3 has nine.
_SHORT = 16


def refusal_of_large_taps(
    norm: Node, leaves: Iterable[Leaf], placement: Placement, program: Program
) -> Refusal | None:
    """Why weights must not take what stands beside them; None, and premises, where they may."""
    refusals = (_refuse_leaf(norm, leaf, placement, program) for leaf in leaves)
    return next((refusal for refusal in refusals if refusal is not None), None)


def _refuse_leaf(norm: Node, leaf: Leaf, placement: Placement, program: Program) -> Refusal | None:
    taps = tuple(m for m in leaf.maps if isinstance(m, OwnTap))
    count = math.prod(size for size in (shape_of(leaf.node) or ())[1:] if isinstance(size, int))
    if not taps or dtype_of(leaf.node) != torch.float32 or count <= _SHORT:
        return None
    made = placement.fold(Leaf(leaf.node, leaf.axis, taps), norm)
    (changed, its_sources), (weight, sources) = (recipe_of(program, node) for node in (made, leaf.node))
    values = [value_of(program, node) for node in (made, leaf.node)]
    placement.discard([made])
    question = Question("large_tap", torch.float32)
    if any(value.is_meta for value in values):
        message = f"whether {described(leaf.node)} can take what stands beside it, its entries alone can tell"
        return Refusal("large_tap", message, norm.name, "rewrite the model as a program (.pt2)")
    if (norm.name, "large_tap") in program.doubted or not question.is_met(values):
        return Refusal(
            "large_tap",
            f"what is added to the result of {described(leaf.node)} is larger than that result, and would be "
            f"rounded in float32 with each of {count} products instead of once",
            norm.name, "use float64 or 16-bit weights, or accept that the norm stays",
        )  # fmt: skip
    program.premises.append(Premise(norm.name, question, (changed, weight), (its_sources, sources)))
    return None
