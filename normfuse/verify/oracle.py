"""Run a widened graph, and make sure that nothing in it was computed in a narrower dtype."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from normfuse.errors import VerificationError
from normfuse.verify.dtypes import is_narrow, widen_inputs
from normfuse.verify.isolation import preserved_rng
from normfuse.verify.randomness import NARROW_DRAW

__all__ = ["execute_wide", "run_wide", "wide_arithmetic"]


def run_wide(gm: GraphModule, flat_inputs: Sequence[object]) -> list[object]:
    """The outputs of a graph from ``widen``, a flat list, floating ones in float64, without gradients.

    ``flat_inputs`` are the inputs of the captured program, in its own dtypes: they are widened and copied
    first. The default dtype, grad mode, autocast and torch's random state are as before afterwards.

    Raises ``VerificationError`` when an operator does not run in float64 or returns a narrower dtype.
    """
    with torch.no_grad(), wide_arithmetic():
        return execute_wide(gm, widen_inputs(flat_inputs))


@contextmanager
def wide_arithmetic() -> Iterator[None]:
    """float64 as default dtype, no autocast, random state restored on exit."""
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(preserved_rng())
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(device, enabled=False))
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def execute_wide(gm: GraphModule, inputs: Sequence[object]) -> list[object]:
    """Interpret a widened graph on inputs that are wide already; to be called under ``wide_arithmetic``."""
    outputs = _WideInterpreter(gm).run(*inputs)
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


class _WideInterpreter(Interpreter):
    """Interprets node by node, so that an error can name its node and values die after their last use."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False

    def run_node(self, n: Node) -> Any:
        try:
            value = super().run_node(n)
        except VerificationError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise VerificationError(f"{n.name} ({n.target}) does not run in float64: {reason}") from error
        if n.op != "output" and not n.meta.get(NARROW_DRAW):
            _require_wide(n, value)
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        submodule = self.fetch_attr(target)
        if isinstance(submodule, GraphModule) and not kwargs:
            return _WideInterpreter(submodule).run(*args)
        return super().call_module(target, args, kwargs)


def _require_wide(node: Node, value: object) -> None:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor) and is_narrow(leaf.dtype):
            raise VerificationError(
                f"{node.name} ({node.target}) returns {leaf.dtype} from float64 inputs, so it has no oracle."
            )
