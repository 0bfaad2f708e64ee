"""A lifted norm: one graph node that carries the subgraph it was spelled with.

The node is a ``call_module`` whose target is a :class:`NormRegion`. Its arguments are, in order,
the normalized input, the eps operand, the weight, the bias and what else the description calls
``stored``, each only where the description says that it exists, and then the sizes that the spelling
reads. Calling the module runs the original operators, so lifting changes no bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Interpreter, Node

from normfuse.errors import InvariantError
from normfuse.ir.sizes import rank_of
from normfuse.ir.spec import NormSpec

__all__ = ["UNLIFTED", "NormRegion", "Operands", "norm_of", "norms_in", "region_of"]

#: Under this key the operators of a norm that is not lifted hold the name of that norm.
UNLIFTED = "normfuse_unlifted"


@dataclass(frozen=True)
class Operands:
    """The graph nodes a norm reads; all but ``source`` broadcast over it.

    The weight and bias of ``group_norm`` and ``instance_norm`` run along the channels, dimension 1.
    ``sizes`` are numbers that the spelling needs and the description does not, as in ``expand_as``, and
    ``held`` are weights of which it makes what the description has in one.
    """

    source: Node
    eps: Node | None = None
    scale: Node | None = None
    shift: Node | None = None
    mean: Node | None = None
    variance: Node | None = None
    skip: Node | None = None
    held: tuple[Node, ...] = ()
    sizes: tuple[Node, ...] = ()

    def named(self) -> tuple[Node, ...]:
        """Those that the description names."""
        roles = (self.source, self.eps, self.scale, self.shift, self.mean, self.variance, self.skip)
        return tuple(node for node in roles if node is not None)

    def as_args(self) -> tuple[Node, ...]:
        return (*self.named(), *self.held, *self.sizes)


class NormRegion(torch.nn.Module):
    """A norm as a callable value: its description, its spelling and its body.

    ``held`` counts the weights that the body reads beside the operands that the description names.
    """

    def __init__(self, spec: NormSpec, body: Graph, spelling: str, held: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.body = body
        self.spelling = spelling
        self.held = held

    def forward(self, *operands: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = Interpreter(self, graph=self.body).run(*operands)
        return result

    def operands(self, node: Node) -> Operands:
        """The roles of the arguments of ``node``, which calls this region."""
        rest = [a for a in node.args if isinstance(a, Node)]
        source = rest.pop(0)
        eps = rest.pop(0) if self.spec.eps is None else None
        scale = rest.pop(0) if self.spec.has_scale else None
        shift = rest.pop(0) if self.spec.has_shift else None
        stored = {role: rest.pop(0) for role in self.spec.stored}
        held, sizes = tuple(rest[: self.held]), tuple(rest[self.held :])
        if any(isinstance(n.meta.get("val"), torch.Tensor) for n in sizes):
            raise InvariantError(f"{node.name} has {len(sizes)} operands more than its description")
        return Operands(source, eps, scale, shift, **stored, held=held, sizes=sizes)

    def is_input(self, node: Node, value: Node) -> bool:
        """Whether ``node``, which calls this region, normalizes a value and reads it nowhere else."""
        return self.operands(node).source is value and list(node.args).count(value) == 1

    def other_axes(self, node: Node) -> list[int]:
        """The axes of ``node``, which calls this region, that are not normalized."""
        rank = rank_of(node)
        return [axis for axis in range(rank) if axis - rank not in self.spec.dims]


def norm_of(node: Node) -> NormRegion | None:
    """The region that ``node`` calls, or None when it is not a lifted norm."""
    if node.op != "call_module":
        return None
    owner = node.graph.owning_module
    module = None if owner is None else getattr(owner, str(node.target), None)
    return module if isinstance(module, NormRegion) else None


def region_of(norm: Node) -> NormRegion:
    """The region that a lifted norm calls.

    Raises:
        InvariantError: for any other node.
    """
    region = norm_of(norm)
    if region is None:
        raise InvariantError(f"{norm.name} is no norm")
    return region


def norms_in(gm: GraphModule) -> list[tuple[Node, NormRegion]]:
    """Every lifted norm of a graph, in execution order."""
    found = ((node, norm_of(node)) for node in gm.graph.nodes)
    return [(node, region) for node, region in found if region is not None]
