"""A folded weight of a model in memory: made, and asked about, in blocks that stay in the caches.

A large weight in float64 is memory that the system has to find, which takes several times as long as the
arithmetic. What the model itself computes from its weights runs as the model runs it, as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch
from torch.fx import Node

from normfuse.folding.blocks import BLOCK, fold_blocks
from normfuse.folding.bound import bound_of
from normfuse.folding.precision import fits
from normfuse.folding.recipe import FOLD, Recipe
from normfuse.ir.rounding import equals_to_rounding
from normfuse.torch_compat import outside_tracing

__all__ = ["can_hold", "fold", "folded"]

#: So many roundings are too many, also for a few rows that are small beside the others.
_FAR = 1000


def folded(recipe: Recipe, sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """What ``recipe`` computes: mapped in float64, cast once, in memory of its own."""
    shape = _shape(recipe, sources)
    if shape is None or recipe.stride is None:
        return recipe.compute(sources)
    with outside_tracing():
        made = torch.empty_strided(shape, recipe.stride, dtype=recipe.dtype)
    with closing(fold_blocks(recipe, sources, shape)) as blocks:
        for axis, start, block in blocks:
            made.narrow(axis, start, block.shape[axis]).copy_(block)
    return made


def fold(recipe: Recipe, sources: Sequence[torch.Tensor]) -> tuple[torch.Tensor, bool]:
    """The folded weight, and whether it is a source, one that holds it already but for a rounding.

    The model is then the same function with that source in its place, so that nothing need be copied.
    """
    made = folded(recipe, sources)
    with outside_tracing():
        held = next((source for source in sources if _looks_like(source, made)), None)
        if held is not None and _is_held(held, made, recipe, sources):
            return held.detach(), True
    return made, False


def _is_held(
    source: torch.Tensor, made: torch.Tensor, recipe: Recipe, sources: Sequence[torch.Tensor]
) -> bool:
    """Mostly bit by bit, as where a map is the identity; else the weight is computed once more to tell."""
    return torch.equal(source, made) or equals_to_rounding(
        source, recipe.in_dtype(torch.float64).value(sources)
    )


def _looks_like(source: torch.Tensor, made: torch.Tensor) -> bool:
    """Whether a source lies as what was made of it does; the first entries tell for most that differ."""
    kinds = [(t.shape, t.stride(), t.dtype, t.device) for t in (source, made)]
    if kinds[0] != kinds[1] or not made.is_floating_point():
        return False
    first, wanted = ((t[:8] if t.dim() else t).detach().double() for t in (source, made))
    return bool((first - wanted).norm() <= _FAR * torch.finfo(made.dtype).eps * wanted.norm())


def can_hold(recipe: Recipe, sources: Sequence[torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether this dtype holds what ``recipe`` computes; see :func:`normfuse.folding.precision.fits`."""
    if dtype != torch.float16 and bound_of(recipe, sources) < torch.finfo(dtype).max / 2:
        return True
    wide = recipe.in_dtype(torch.float64)
    shape = _shape(recipe, sources)
    if shape is None or dtype == torch.float16:  # of which whole rows and columns are looked at
        return fits(wide.value(sources), dtype)
    with closing(fold_blocks(wide, sources, shape)) as blocks:
        return all(fits(block, dtype) for _, _, block in blocks)


def _shape(recipe: Recipe, sources: Sequence[torch.Tensor]) -> tuple[int, ...] | None:
    """The shape of what is computed; None where it is small, or not made of maps alone on the host."""
    steps = [node for node in recipe.body.nodes if node.op == "call_function"]
    is_large = max((source.numel() for source in sources), default=0) > BLOCK
    if not is_large or not steps or not all(FOLD in node.meta for node in steps):
        return None
    result = recipe.body.output_node().args[0]
    known = result.meta.get("val") if isinstance(result, Node) else None
    if known is None or any(source.device.type != "cpu" for source in sources):
        return None
    shape = tuple(known.shape)
    return shape if shape and all(isinstance(size, int) for size in shape) else None
