"""Symbolic sizes as graph nodes: every number that a trace computes is traced back to a node."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node, Proxy
from torch.fx.proxy import GraphAppendingTracer
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from normfuse.errors import CaptureError

__all__ = ["SYMBOLIC", "Symbols", "symbol_key"]

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_PLAIN = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}


def symbol_key(number: Any) -> Any:
    """A hashable stand-in: the number itself, or the expression behind a symbolic one."""
    return str(number.node.expr) if isinstance(number, SYMBOLIC) else number


class Symbols:
    """The node behind each symbolic expression of one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes: dict[Any, Node] = {}

    def learn(self, number: Any, node: Node) -> None:
        """``node`` computes this number; the first one to do so is used."""
        if isinstance(number, SYMBOLIC):
            self._nodes.setdefault(number.node.expr, node)

    def find(self, number: Any) -> Any:
        """The node for a number, the number itself when it is known; None when nothing computes it yet."""
        expression = number.node.expr
        known = self._nodes.get(expression)
        if known is not None:
            return known
        return _PLAIN[type(number)](expression) if expression.is_number else None

    def argument(self, number: Any) -> Any:
        """What to write into a call for this number.

        Raises:
            CaptureError: when it depends on a size that no node of the graph computes.
        """
        found = self.find(number)
        return self._compute(number) if found is None else found

    def _compute(self, number: Any) -> Node:
        expression = number.node.expr
        missing = sorted(str(s) for s in expression.free_symbols if s not in self._nodes)
        if missing:
            raise CaptureError(
                f"the size {expression} depends on {', '.join(missing)}, which no node computes"
            )
        tracer = GraphAppendingTracer(self._graph)
        proxies = {s: Proxy(self._nodes[s], tracer) for s in expression.free_symbols}
        last = next(iter(reversed(self._graph.nodes)), None)
        made: Node = sympy_interp(PythonReferenceAnalysis, proxies, expression).node
        made.meta["val"] = number
        self._fill_values(last)
        self.learn(number, made)
        return made

    def _fill_values(self, last: Node | None) -> None:
        """Fake values of the arithmetic nodes behind ``last``."""
        node = next(iter(self._graph.nodes)) if last is None else last.next
        while node.op != "root":
            if "val" not in node.meta and node.op == "call_function":
                values = torch.fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
                node.meta["val"] = _called(node.target, *values)
            node = node.next


def _called(target: Any, args: Any, kwargs: Any) -> Any:
    return (target if callable(target) else operator.attrgetter(target))(*args, **kwargs)
