"""Put channel maps into a graph: on weights as algebra, on activations as one subtraction.

Nodes made on weights are marked in their metadata, so that a later pass can compute them once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.fx import Graph, Node

from normfuse.analysis.beside import Beside
from normfuse.analysis.channel_map import ChannelMap, Diagonal, dtype_of
from normfuse.analysis.forward import Read, before_rounding
from normfuse.analysis.own_tap import OwnTap
from normfuse.analysis.plan import (
    Constant,
    Kept,
    Leaf,
    Maps,
    Plan,
    Rebuilt,
    Redirected,
    linear_parts,
    merged,
    redirected,
)
from normfuse.analysis.resize import resize
from normfuse.errors import InvariantError
from normfuse.folding.recipe import FOLD
from normfuse.ir.calls import aten, bind, set_arguments
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import call, cast
from normfuse.ir.readers import value_readers
from normfuse.ir.refresh import refresh_readers
from normfuse.ir.sizes import is_row_major, lies_alike, same_shape, shape_of, tensor_of
from normfuse.passes.runs import as_it_lay, as_runs, times_shift

__all__ = ["Placement", "Substitution"]

#: Who reads, what it reads now, and what it is to read.
Substitution = tuple[Node, Node, Plan]


class Placement:
    """Edits one graph; equal maps of one weight are made once. ``made`` are all nodes made on weights."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._folded: dict[Hashable, Node] = {}
        self._erased: set[Node] = set()
        self._whole: dict[Node, Plan] = {}
        self.made: list[Node] = []

    def substitute(self, planned: Sequence[Substitution]) -> None:
        """Let each user read the planned value in place of an operand; a user may be the operand itself.

        Every plan speaks of the graph as it was when the plans were made, so all values are made before
        any reader is changed, and nothing is erased before all readers are. Parts of one value are changed
        together.
        """
        apart: dict[Node, list[Plan]] = {}
        for part in (part for _, _, plan in planned for part in redirected(plan)):
            apart.setdefault(part.operand, []).append(part.plan)
        self._whole = {whole: merged(plans) for whole, plans in apart.items()}
        made = [(user, operand, self._made_for(user, operand, plan)) for user, operand, plan in planned]
        for user, operand, value in made:
            if user is not operand:
                user.replace_input_with(operand, value)
        for user, operand, value in made:
            if user is operand and value is not user:
                user.replace_all_uses_with(value)
        for _, operand, _ in made:
            self.erase(operand)

    def _made_for(self, user: Node, operand: Node, plan: Plan) -> Node:
        if user is not operand and operand not in user.all_input_nodes:
            raise InvariantError(f"{user.name} does not read {operand.name}, which was to be replaced there")
        value = self.make(plan, user)
        value.meta.setdefault("val", operand.meta["val"])
        return value

    def after(self, node: Node, axis: int, mapping: ChannelMap, readers: set[Node] | None) -> Node:
        """Apply a map to an activation, for the given readers or for all."""
        existing = [user for user in node.users if readers is None or user in readers]
        value = tensor_of(node)
        with self._graph.inserting_before(_behind(node)):
            made = mapping.emit(self._graph, node, axis)
            if (
                same_shape(node, made)
                and not lies_alike(node, made)
                and value is not None
                and is_row_major(value)
            ):
                made = call(self._graph, aten.contiguous.default, made)
        for reader in existing:
            reader.replace_input_with(node, made)
        self.mark_sources(made, {node})
        if same_shape(node, made) and not lies_alike(node, made):
            refresh_readers(made)
        return made

    def mark_sources(self, made: Node, values: set[Node]) -> None:
        """Mark what a map of ``values`` computes of its sources alone."""
        if made in values or made.op == "placeholder":
            return
        if _depends_on(made, values):
            for operand in made.all_input_nodes:
                self.mark_sources(operand, values)
        else:
            made.meta[FOLD] = True

    def make(self, plan: Plan, before: Node) -> Node:
        """The planned value: a folded weight, or operators anew where they stand, ahead of ``before``."""
        if isinstance(plan, Kept):
            return self._kept(plan)
        if isinstance(plan, Leaf):
            return self.fold(plan, before)
        if isinstance(plan, Constant):
            return self._constant(plan, before)
        if isinstance(plan, Redirected):
            if self.is_erased(plan.operand):
                return plan.node  # changed together with another part
            made = self.make(self._whole.get(plan.operand, plan.plan), plan.operand)
            plan.operand.replace_all_uses_with(made)
            self.erase(plan.operand)
            return plan.node
        copies = {operand: self.make(deeper, plan.node) for operand, deeper in plan.operands}
        bias = None if plan.bias is None else (plan.bias[0], self._constant(plan.bias[1], plan.node))
        return self._rebuild(plan, copies, bias)

    def weights(self, plan: Plan, before: Node) -> list[Node]:
        """The folded weights of a plan, made before anything that reads them."""
        if isinstance(plan, Kept):
            return []
        if isinstance(plan, Redirected):
            return self.weights(plan.plan, plan.operand)
        if isinstance(plan, (Leaf, Constant)):
            return [self.make(plan, before)]
        made = [n for _, deeper in plan.operands for n in self.weights(deeper, plan.node)]
        return made if plan.bias is None else [*made, self._constant(plan.bias[1], plan.node)]

    def discard(self, made: Iterable[Node]) -> None:
        """Remove folded weights that nothing reads after all."""
        for node in made:
            self.erase(node)
        self.made = [node for node in self.made if node not in self._erased]

    def _rebuild(self, plan: Rebuilt, copies: dict[Node, Node], bias: tuple[str, Node] | None) -> Node:
        with self._graph.inserting_before(plan.node):
            made = self._graph.node_copy(plan.node, lambda n: copies.get(n, n))
        made.meta = dict(plan.node.meta)
        if bias is not None:
            set_arguments(made, {bias[0]: bias[1]})
        if plan.resized is not None:
            resize(made, *plan.resized)
            return made  # what reads the sizes alone goes on reading the old ones
        readers = set(value_readers(plan.node))
        for user in [u for u in plan.node.users if u not in readers]:
            user.replace_input_with(plan.node, made)
        return made

    def _kept(self, plan: Kept) -> Node:
        if plan.resized is None:
            return plan.node
        with self._graph.inserting_before(plan.node):
            made = self._graph.node_copy(plan.node)
        made.meta = dict(plan.node.meta)
        resize(made, *plan.resized)
        return made

    def fold(self, leaf: Leaf, before: Node) -> Node:
        """The folded weight, made right behind what it is made of so that every reader can share it."""
        if leaf not in self._folded:
            with self._inserting({leaf.node, *_sources(leaf.maps)}, before) as sources:
                made = as_runs(self._graph, leaf.node, leaf.groups)
                for mapping in leaf.maps:
                    made = mapping.emit(self._graph, made, leaf.axis)
                made = as_it_lay(self._graph, made, leaf)
            self._note(leaf, made, sources)
        self._raise(self._folded[leaf], before)
        return self._folded[leaf]

    def _constant(self, plan: Constant, before: Node) -> Node:
        """The maps of zero, in the dtype of the weight beside which it stands."""
        if plan not in self._folded:
            with self._inserting(set(_sources(plan.maps)), before) as sources:
                width = (shape_of(plan.like) or ())[plan.axis] * plan.groups
                made = self._of_zero(plan.maps, width, dtype_of(plan.like))
            self._note(plan, made, sources)
        self._raise(self._folded[plan], before)
        return self._folded[plan]

    def shifted(self, read: Read) -> Node:
        """The bias of a reader plus what its weight makes of the shift."""
        given, how = bind(read.node)[read.bias], read.reading
        bias = before_rounding(given) if isinstance(given, Node) else None
        plan = ("bias", read.leaf, read.maps, bias, read.dtype, how.summed, how.kept, how.shape)
        if plan not in self._folded:
            sources = {read.leaf.node, *_sources(read.maps), *([] if bias is None else [bias])}
            with self._inserting(sources, read.node):
                made = self._with_shift(read, bias)
            self._note(plan, made, sources)
        self._raise(self._folded[plan], read.node)
        return self._folded[plan]

    def _with_shift(self, read: Read, bias: Node | None) -> Node:
        wide = opmath(dtype_of(read.leaf.node))
        shift = self._of_zero(read.maps, read.channels, wide)
        weight = cast(self._graph, read.leaf.node, wide)
        made = times_shift(self._graph, weight, shift, read.reading)
        if bias is not None:
            made = call(self._graph, aten.add.Tensor, made, bias)
        return cast(self._graph, made, read.dtype)

    def beside(self, found: Beside, mapping: ChannelMap) -> dict[str, Node]:
        """The weight that a norm stands beside, and its bias, with what the norm does.

        Where the weight's result is all that is left of the sum, it takes the factor as well.
        """
        bias = bind(found.reader)["bias"]
        maps = (mapping, *found.maps)
        times = (Diagonal(found.factor),) if found.rest is found.reader and found.factor != 1 else ()
        leaf = Leaf(found.weight, 0, (OwnTap(linear_parts(maps), found.groups), *times))
        changed = {"weight": self.fold(leaf, found.reader)}
        if isinstance(bias, Node) and times and mapping.is_linear:
            changed["bias"] = self.fold(Leaf(bias, 0, times), found.reader)
        if not mapping.is_linear:
            sources = {*_sources(maps), *([bias] if isinstance(bias, Node) else [])}
            with self._inserting(sources, found.reader):
                width = (shape_of(found.weight) or ())[0]
                made = self._of_zero(maps, width, opmath(dtype_of(found.weight)))
                if isinstance(bias, Node):
                    made = call(self._graph, aten.add.Tensor, made, bias)
                for one in times:
                    made = one.emit(self._graph, made, 0)
                changed["bias"] = cast(self._graph, made, dtype_of(found.weight))
            self._mark(changed["bias"], sources)
        return changed

    def without_branch(self, found: Beside) -> Node:
        """What is left of a sum whose branch a weight has taken."""
        if found.factor == 1 or found.rest is found.reader:
            return found.rest
        with self._graph.inserting_before(found.sum):
            if found.factor == -1:
                return call(self._graph, aten.neg.default, found.rest)
            return call(self._graph, aten.mul.Tensor, found.rest, found.factor)

    def behind(self, read: Read) -> dict[str, Node]:
        """The weight that reads a norm, and its bias, with what the norm does."""
        changed = {read.weight: self._rounded(self.fold(read.leaf, read.node), read)}
        return changed | {read.bias: self.shifted(read)} if read.has_shift else changed

    def _rounded(self, made: Node, read: Read) -> Node:
        """A folded weight in the dtype in which it is read."""
        plan = ("rounded", made, read.dtype)
        if dtype_of(made) == read.dtype:
            return made
        if plan not in self._folded:
            with self._inserting({made}, read.node):
                rounded = cast(self._graph, made, read.dtype)
            self._note(plan, rounded, {made})
        self._raise(self._folded[plan], read.node)
        return self._folded[plan]

    def times(self, weight: Node, number: float, before: Node) -> Node:
        """A weight value times a number."""
        return self.fold(Leaf(weight, 0, (Diagonal(number),)), before)

    def made_of(self, sources: set[Node], before: Node, emit: Callable[[Graph], Node]) -> Node:
        """What ``emit`` makes of weight values."""
        with self._inserting(sources, before):
            made = emit(self._graph)
        self._mark(made, sources)
        return made

    def _of_zero(self, maps: Maps, width: int, dtype: torch.dtype) -> Node:
        made = call(self._graph, aten.new_zeros.default, _sources(maps)[0], [width])
        made = cast(self._graph, made, dtype)
        for mapping in maps:
            made = mapping.emit(self._graph, made, 0)
        return made

    @contextmanager
    def _inserting(self, sources: set[Node], before: Node) -> Iterator[set[Node]]:
        for source in sorted(sources):  # in the graph's order: equal graphs are rewritten alike
            self._raise(source, before)
        with self._graph.inserting_before(_behind(max(sources))):
            yield sources

    def _note(self, plan: Hashable, made: Node, sources: set[Node]) -> None:
        self._mark(made, sources)
        self._folded[plan] = made

    def _mark(self, made: Node, sources: set[Node]) -> None:
        stack = [made]
        while stack:
            node = stack.pop()
            if node not in sources and FOLD not in node.meta:
                node.meta[FOLD] = True
                self.made.append(node)
                stack.extend(node.all_input_nodes)

    def _raise(self, node: Node, before: Node) -> None:
        """Move a weight value, and what it is made of, ahead of ``before``."""
        if node.op == "placeholder" or node < before:
            return
        for operand in node.all_input_nodes:
            self._raise(operand, before)
        before.prepend(node)

    def is_erased(self, node: Node) -> bool:
        """Whether a node is no longer in the graph, since what read it reads something else."""
        return node in self._erased

    def erase(self, node: Node) -> None:
        """Remove a node and what only it needed."""
        stack = [node]
        while stack:
            current = stack.pop()
            if current.users or current.op == "placeholder" or current in self._erased:
                continue
            inputs = current.all_input_nodes
            self._graph.erase_node(current)
            self._erased.add(current)
            self._folded = {plan: made for plan, made in self._folded.items() if made is not current}
            stack.extend(inputs)


def _depends_on(node: Node, values: set[Node]) -> bool:
    return node in values or any(_depends_on(operand, values) for operand in node.all_input_nodes)


def _sources(maps: Maps) -> list[Node]:
    return [node for mapping in maps for node in mapping.sources]


def _behind(node: Node) -> Node:
    """The first node after ``node`` and after all placeholders."""
    following = node.next
    while following.op == "placeholder":
        following = following.next
    return following
