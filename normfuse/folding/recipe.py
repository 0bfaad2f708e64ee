"""How one folded weight is computed from the model's own: a small program, the maps in float64.

What the model itself computes from its weights runs as the model runs it. The maps that were put
on top run in float64 without casts, so they round once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Interpreter, Node
from torch.nn import Module
from torch.utils._pytree import tree_map_only

from normfuse.ir.calls import CASTS, is_call
from normfuse.ir.rounding import equals_to_rounding
from normfuse.torch_compat import outside_tracing

__all__ = ["FOLD", "Folded", "Recipe", "run_exactly"]

#: So many roundings are too many, also for a few rows that are small beside the others.
_FAR = 1000
#: Metadata key of graph nodes that apply a map to a weight.
FOLD = "normfuse_fold"


@dataclass(frozen=True)
class Recipe:
    """``body`` maps the sources, in order, to the folded weight of this ``dtype``.

    ``root`` holds the constants that the body reads.

    ``key`` is equal for equal computations; ``label`` names the sources for people; ``stride`` is where the
    entries lie, as they were computed when unknown.
    """

    body: Graph
    root: Module
    dtype: torch.dtype
    key: str
    label: str
    stride: tuple[int, ...] | None = None

    def compute(self, sources: Sequence[torch.Tensor]) -> torch.Tensor:
        """The folded weight: mapped in float64, cast once."""
        with outside_tracing():
            return self._laid_out(self._run(sources))

    def fold(self, sources: Sequence[torch.Tensor]) -> tuple[torch.Tensor, bool]:
        """The folded weight, and whether it is a source, one that holds it already but for a rounding.

        The model is then the same function with that source in its place, so that nothing need be copied.
        """
        with outside_tracing():
            exact = self._run(sources)
            held = next((s for s in sources if self._is_like(s, exact) and _holds(s, exact)), None)
            return (self._laid_out(exact), False) if held is None else (held.detach(), True)

    def in_dtype(self, dtype: torch.dtype) -> Recipe:
        """The same computation, rounded to another dtype in the end."""
        return replace(self, dtype=dtype)

    def _run(self, sources: Sequence[torch.Tensor]) -> torch.Tensor:
        result: torch.Tensor = _Exact(self.root, graph=self.body).run(*(s.detach() for s in sources))
        return result

    def _is_like(self, source: torch.Tensor, exact: torch.Tensor) -> bool:
        stride = exact.stride() if self.stride is None else self.stride
        return (source.shape, source.stride(), source.dtype) == (exact.shape, stride, self.dtype)

    def _laid_out(self, result: torch.Tensor) -> torch.Tensor:
        """In memory of its own, since a later fold writes there, and as the graph says that it lies."""
        if self.stride is None:
            made = torch.empty_like(result, dtype=self.dtype)
        else:
            made = torch.empty_strided(result.shape, self.stride, dtype=self.dtype, device=result.device)
        return made.copy_(result)


@dataclass(frozen=True)
class Folded:
    """One folded weight: its placeholder, how to compute it, and from which inputs of the program."""

    node: Node
    recipe: Recipe
    sources: tuple[Node, ...]

    @property
    def size(self) -> int:
        """The bytes that it takes."""
        value = self.node.meta["val"]
        return int(value.numel() * value.element_size())


class _Exact(Interpreter):
    """Runs marked nodes in float64 and leaves out their casts."""

    def run_node(self, n: Node) -> Any:
        if FOLD not in n.meta:
            return super().run_node(n)
        return run_exactly(n, *self.fetch_args_kwargs_from_env(n))


def run_exactly(node: Node, args: Any, kwargs: Any) -> Any:
    """One step of a map, on these values in place of its operands: in float64, and without its casts."""
    args = tree_map_only(torch.Tensor, _widened, args)
    return args[0] if is_call(node, *CASTS) else node.target(*args, **kwargs)  # type: ignore[operator]


def _holds(source: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether a tensor holds these entries; the first of them tell for most that do not."""
    if not source.is_floating_point() or source.device != exact.device:
        return False
    first, wide = (v[:8].double() if v.dim() else v.double() for v in (source, exact))
    looks_so = bool((first - wide).norm() <= _FAR * torch.finfo(source.dtype).eps * wide.norm())
    return looks_so and equals_to_rounding(source, exact.double())


def _widened(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value
