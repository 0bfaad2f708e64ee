"""How one folded weight is computed from the model's own: a small program, the maps in float64.

What the model itself computes from its weights runs as the model runs it. The maps that were put
on top run in float64 without casts, so they round once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.nn import Module

from normfuse.errors import InputError, cause
from normfuse.ir.calls import CASTS, is_call
from normfuse.ir.location import described
from normfuse.torch_compat import outside_tracing

__all__ = ["FOLD", "Folded", "Recipe", "run_exactly"]

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
            return self._laid_out(self._mapped(sources))

    def value(self, sources: Sequence[torch.Tensor]) -> torch.Tensor:
        """What :meth:`compute` gives, to be read alone: it may lie in the memory of a source."""
        with outside_tracing():
            return self._mapped(sources).to(self.dtype)

    def _mapped(self, sources: Sequence[torch.Tensor]) -> torch.Tensor:
        """The result of the last step; what no further step reads is let go."""
        given = iter(sources)
        values: dict[Node, Any] = {}
        waiting = {node: len(node.users) for node in self.body.nodes}
        for node in self.body.nodes:
            if node.op == "placeholder":
                values[node] = next(given).detach()
            elif node.op == "get_attr":
                values[node] = attrgetter(str(node.target))(self.root)
            elif node.op == "call_function":
                values[node] = _run(node, values)
            for operand in node.all_input_nodes if node.op == "call_function" else ():
                waiting[operand] -= 1
                if not waiting[operand]:
                    del values[operand]
        result: torch.Tensor = values[self.body.output_node().args[0]]  # type: ignore[index]
        return result

    def in_dtype(self, dtype: torch.dtype) -> Recipe:
        """The same computation, rounded to another dtype in the end."""
        return replace(self, dtype=dtype)

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


def _run(node: Node, values: Mapping[Node, Any]) -> Any:
    """One step: in float64 and without casts where it is marked."""
    given: Any = map_arg((node.args, node.kwargs), values.__getitem__)
    args, kwargs = given
    if FOLD in node.meta:
        return run_exactly(node, args, kwargs)
    try:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        message = f"{described(node)} is computed from weights alone, and does not run: {cause(error)}"
        raise InputError(message) from error


def run_exactly(node: Node, args: Any, kwargs: Any) -> Any:
    """One step of a map, on these values in place of its operands: in float64, and without its casts."""
    args = _widened(args)
    return args[0] if is_call(node, *CASTS) else node.target(*args, **kwargs)  # type: ignore[operator]


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    return type(value)(map(_widened, value)) if isinstance(value, (list, tuple)) else value
