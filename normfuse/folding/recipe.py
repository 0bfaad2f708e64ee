"""How one folded weight is computed from the model's own: a small program run in float64.

Every floating cast inside it is skipped, so nothing is rounded before the result is cast, once,
to the dtype in which the graph reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Interpreter, Node
from torch.nn import Module

from normfuse.ir.calls import aten, is_call
from normfuse.torch_compat import outside_tracing

__all__ = ["Folded", "Recipe"]

_CASTS = (
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
)


@dataclass(frozen=True)
class Recipe:
    """``body`` maps the sources, in order, to the folded weight of this ``dtype``.

    ``root`` holds the constants that the body reads.
    ``key`` is equal for equal computations; ``label`` names the sources for people.
    """

    body: Graph
    root: Module
    dtype: torch.dtype
    key: str
    label: str

    def compute(self, sources: Sequence[torch.Tensor]) -> torch.Tensor:
        """The folded weight: computed in float64, cast once."""
        with outside_tracing():
            wide = [s.detach().double() if s.is_floating_point() else s.detach() for s in sources]
            result: torch.Tensor = _Exact(self.root, graph=self.body).run(*wide)
            return result.to(self.dtype).contiguous()


@dataclass(frozen=True)
class Folded:
    """One folded weight: its placeholder, how to compute it, and from which inputs of the program."""

    node: Node
    recipe: Recipe
    sources: tuple[Node, ...]


class _Exact(Interpreter):
    """Runs a graph without its floating casts."""

    def run_node(self, n: Node) -> Any:
        if is_call(n, *_CASTS):
            (value, *_), _ = self.fetch_args_kwargs_from_env(n)
            wanted = n.meta.get("val")
            if isinstance(wanted, torch.Tensor) and wanted.is_floating_point():
                return value.double()
        return super().run_node(n)
