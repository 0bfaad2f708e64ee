"""Recipes as functions of inputs and weights, and their capture as programs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate

from normfuse.ir import Input, Program, Role
from tests.fuzz.recipe import Recipe, Step

__all__ = ["ROWS", "STEPS", "Case", "Net", "build", "copies", "inputs_of", "piece", "retyped"]

ROWS = 7
"""Rows of an embedding table."""

Piece = Callable[["Net", Step], None]
STEPS: dict[str, dict[str, Piece]] = {}


def piece(kind: str, *variants: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register what a step of this kind does; a function for several variants takes the name as well."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        for variant in variants or (function.__name__.strip("_"),):
            assert variant not in STEPS.setdefault(kind, {})
            STEPS[kind][variant] = function
        return function

    return register


@dataclass
class Weights:
    """The parameters of a network, made while it runs for the first time and handed out again later."""

    seed: int
    alias: bool
    tensors: list[Tensor] = field(default_factory=list)
    handed: list[int] = field(default_factory=list)
    tied: set[int] = field(default_factory=set)

    def make(self, shape: tuple[int, ...], tie: bool, kind: str) -> int:
        """The number of a new parameter, or of an older one of this shape when ``tie`` asks for it."""
        for number, tensor in enumerate(self.tensors):
            if tie and tuple(tensor.shape) == shape:
                self.tied.add(number)
                return self._again(number) if self.alias else number
        made = _random(shape, f"{self.seed} {len(self.tensors)}")
        self.tensors.append(made.square() + 0.1 if kind == "variance" else made)
        return len(self.tensors) - 1

    def _again(self, number: int) -> int:
        self.tensors.append(self.tensors[number].detach())
        return len(self.tensors) - 1


def _random(shape: tuple[int, ...], name: str) -> Tensor:
    """Numbers of mean one, so that a mean that was forgotten shows."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64) + 1


class Net:
    """One run of a recipe: the streams so far, the values that norms and readers made, and the weights."""

    def __init__(self, recipe: Recipe, x: Tensor, ids: Tensor, weights: Callable[..., Tensor]) -> None:
        self.recipe, self.x, self.ids, self._weights = recipe, x, ids, weights
        self.width = recipe.width
        self.streams: list[Tensor] = []
        self.values: list[Tensor] = []
        self.extra: list[Tensor] = []
        self.tie = False

    def weight(self, *shape: int) -> Tensor:
        return self._weights(shape, self.tie, "")

    def variance(self, width: int) -> Tensor:
        """A stored variance: a weight that is never negative, as a buffer that was trained."""
        return self._weights((width,), False, "variance")

    def value(self, step: Step) -> Tensor:
        """Something to compute from: the latest norms' outputs, or the network's input."""
        held = [self.x, *self.values]
        return held[-1 - step.source % len(held)]

    def stream(self, step: Step) -> Tensor:
        if not self.streams:
            self.streams.append(torch.nn.functional.linear(self.x, self.weight(self.width, self.width)))
        return self.streams[-1 - step.target % len(self.streams)]

    def replace(self, step: Step, value: Tensor) -> None:
        self.streams[-1 - step.target % len(self.streams)] = value

    def run(self) -> list[Tensor]:
        for step in self.recipe.steps:
            self.tie = step.tie
            STEPS[step.kind][step.variant](self, step)
        self.tie = False
        raw = self.streams[-1:] if self.recipe.raw else []
        return [*(self.values or [self.x * 1]), *self.extra, *raw]


@dataclass
class Case:
    """A network in one dtype: the function, what it is called with, and how many of that are weights."""

    recipe: Recipe
    function: Callable[..., list[Tensor]]
    given: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    @property
    def arguments(self) -> list[Tensor]:
        return [*self.given, *self.weights]

    def capture(self, described: bool = True) -> GraphModule:
        """The graph of the function, with fake values; or, in a quarter of the time, without any."""
        if described or self.recipe.dynamic:
            return self._traced("symbolic" if self.recipe.dynamic else "fake")
        with patch("torch.fx.experimental.proxy_tensor.extract_val", lambda *_, **__: None):
            return self._traced("real")

    def _traced(self, mode: str) -> GraphModule:
        with torch.no_grad():
            traced: GraphModule = make_fx(self.function, pre_dispatch=True, tracing_mode=mode)(
                *copies(self.arguments)
            )
        return traced

    def program(self, gm: GraphModule) -> Program:
        """A captured graph over these inputs, for an offline rewrite; one in three for a compiler."""
        nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
        inputs = [
            Input(n, Role.USER if i < len(self.given) else Role.PARAMETER, f"p{i}", v)
            for i, (n, v) in enumerate(zip(nodes, self.arguments, strict=True))
        ]
        return Program(gm, inputs, copies_tables=self.recipe.seed % 3 != 0)

    def other_sizes(self) -> tuple[Tensor, ...]:
        """What the function is called with once more when its sizes are symbols."""
        return inputs_of(self.recipe, self.recipe.batch + 1, self.recipe.tokens + 2, self.given[0].dtype)


def retyped(gm: GraphModule, case: Case) -> GraphModule:
    """The same operators in the dtype of ``case``, described by the real values of one run.

    Tracing is what costs time; a graph that differs in its dtype alone need not be traced again.
    """
    graph = Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    dtype = case.given[0].dtype
    for node in graph.nodes:
        replaced = map_aggregate((node.args, node.kwargs), lambda a: dtype if a is torch.float64 else a)
        node.args, node.kwargs = replaced
    made = GraphModule(gm, graph)
    with torch.no_grad():
        _Describe(made).run(*copies(case.arguments))
    return made


class _Describe(Interpreter):
    """Notes the value of every node as what is known about it."""

    def run_node(self, n: Node) -> Any:
        n.meta["val"] = value = super().run_node(n)
        return value


def inputs_of(
    recipe: Recipe, batch: int, tokens: int, dtype: torch.dtype, draw: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(recipe.seed + 7919 * draw)
    x = torch.randn(batch, tokens, recipe.width, generator=generator, dtype=torch.float64) + 1
    ids = torch.randint(0, ROWS, (batch, tokens), generator=generator)
    return x.to(dtype), ids


def build(recipe: Recipe, dtype: torch.dtype, draw: int = 0) -> Case:
    """The network of a recipe; ``draw`` chooses other random numbers for the same network."""
    x, ids = inputs_of(recipe, recipe.batch, recipe.tokens, torch.float64, draw)
    made = Weights(recipe.seed + 104729 * draw, recipe.alias)

    def create(shape: tuple[int, ...], tie: bool, kind: str) -> Tensor:
        number = made.make(shape, tie, kind)
        made.handed.append(number)
        return made.tensors[number]

    Net(recipe, x.clone(), ids, create).run()

    def function(x: Tensor, ids: Tensor, *weights: Tensor) -> list[Tensor]:
        order = iter(made.handed)
        return Net(recipe, x, ids, lambda shape, tie, kind: weights[next(order)]).run()

    return Case(recipe, function, (x.to(dtype), ids), tuple(copies(made.tensors, dtype)))


def copies(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """New tensors, floating ones in this dtype; what was one memory under two names is so again."""
    memory: dict[int, Tensor] = {}
    result: list[Tensor] = []
    for tensor in tensors:
        key = tensor.untyped_storage().data_ptr()
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        result.append(memory[key].detach() if key in memory else tensor.detach().to(wanted, copy=True))
        memory.setdefault(key, result[-1])
    return result
