"""A captured program: one flat graph, what its inputs are, and the tensors behind them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from normfuse.torch_compat import graph_module

__all__ = ["Inner", "Input", "Program", "Role"]


class Role(Enum):
    """What a graph input is."""

    USER = "user"
    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"


_CALLED = {Role.USER: "input", Role.PARAMETER: "weight", Role.BUFFER: "buffer", Role.CONSTANT: "constant"}


@dataclass(frozen=True)
class Input:
    """One placeholder: its role, the name its owner gives it, and the real tensor when known.

    ``owner`` is a weak reference to the module that holds a weight, where that is known. ``is_sharded`` says
    that its memory is filled anew for every call, as that of fully sharded models is.
    """

    node: Node
    role: Role
    name: str
    value: Any = None
    owner: weakref.ref[torch.nn.Module] | None = None
    is_sharded: bool = False

    @property
    def is_weight(self) -> bool:
        """Whether the value belongs to the model and not to the call."""
        return self.role is not Role.USER and isinstance(self.value, torch.Tensor)

    @property
    def trains(self) -> bool:
        """Whether gradients are recorded for the value."""
        return isinstance(self.value, torch.Tensor) and self.value.requires_grad


@dataclass(frozen=True)
class Inner:
    """A graph that an operator of another one runs, to be looked at and not changed."""

    operator: str
    program: Program


@dataclass
class Program:
    """A pre-dispatch ATen graph with flat inputs and outputs.

    ``inputs`` follow the placeholders. ``copies_tables`` says whether folding may copy an
    embedding table: an offline rewrite replaces it, a compiled model would hold it twice. ``statistics``
    are inputs that a kernel may update without leaving a trace in a version counter. ``updated`` are names of
    weights for which the graph returns what they hold at the next call. ``premises`` are the facts about
    weights (:class:`normfuse.folding.Premise`) that the rewrite rests on; ``doubted`` are those that other
    weights, with which the same graph was called, did not meet. ``inner`` are copies of the graphs that
    operators of this one run. ``rotation`` is the input that holds a matrix to turn the stream by.
    ``values_later`` says that weights on the meta device stand for those of files: what depends on their
    entries is granted, and is a premise. ``centres_lookups`` asks for an explicit centring right behind a
    table where that does as much as one further on.
    """

    gm: GraphModule
    inputs: list[Input]
    copies_tables: bool = False
    grad_enabled: bool = False
    notes: list[str] = field(default_factory=list)
    statistics: set[Node] = field(default_factory=set)
    updated: frozenset[str] = frozenset()
    premises: list[Any] = field(default_factory=list)
    doubted: frozenset[tuple[str, str]] = frozenset()
    inner: list[Inner] = field(default_factory=list)
    rotation: Node | None = None
    values_later: bool = False
    centres_lookups: bool = False
    _weights: dict[Node, Input] = field(init=False, repr=False, compare=False, default_factory=dict)
    _counted: int = field(init=False, repr=False, compare=False, default=-1)

    def copied(self) -> Program:
        """The same program over a graph of its own; tensors, fake values and submodules are shared."""
        graph, nodes = Graph(), dict[Node, Node]()
        graph.output(graph.graph_copy(self.gm.graph, nodes))
        for original, copy in nodes.items():
            copy.name = original.name  # a new graph avoids Python's own names, like input
        graph.output_node().meta = dict(self.gm.graph.output_node().meta)
        gm = graph_module(self.gm, graph)
        gm.meta = dict(self.gm.meta)
        inputs = [replace(i, node=nodes[i.node]) for i in self.inputs]
        return replace(
            self, gm=gm, inputs=inputs, notes=list(self.notes), premises=list(self.premises),
            rotation=None if self.rotation is None else nodes[self.rotation],
        )  # fmt: skip

    def __post_init__(self) -> None:
        for one in self.inputs:
            one.node.meta["label"] = f"{_CALLED[one.role]} {one.name}"

    @property
    def weights(self) -> dict[Node, Input]:
        """The inputs that are parameters, buffers or constants."""
        if self._counted != len(self.inputs):
            self._weights = {i.node: i for i in self.inputs if i.is_weight}
            self._counted = len(self.inputs)
        return self._weights
