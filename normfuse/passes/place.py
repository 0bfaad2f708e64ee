"""Put channel maps into a graph: on weights as algebra, on activations as one subtraction."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, Node

from normfuse.analysis.channel_map import ChannelMap
from normfuse.analysis.plan import Constant, Kept, Leaf, Plan, Rebuilt, Redirected, merged, redirected
from normfuse.analysis.resize import resize
from normfuse.errors import InvariantError
from normfuse.folding.recipe import FOLD
from normfuse.ir.calls import aten, set_arguments
from normfuse.ir.emit import call
from normfuse.ir.readers import value_readers
from normfuse.ir.refresh import refresh, refresh_readers
from normfuse.ir.sizes import is_row_major, lies_alike, same_shape, tensor_of
from normfuse.passes.reader_weights import ReaderWeights
from normfuse.passes.weight_algebra import behind_placeholders

__all__ = ["Placement", "Substitution"]

#: Who reads, what it reads now, and what it is to read.
Substitution = tuple[Node, Node, Plan]


class Placement(ReaderWeights):
    """Edits one graph; equal maps of one weight are made once."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._whole: dict[Node, Plan] = {}

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
                if same_shape(operand, value) and not lies_alike(operand, value):
                    refresh_readers(value)
        folded = set(self.made)  # of a weight that is its own reader they are made, as it was
        for user, operand, value in made:
            if user is operand and value is not user:
                user.replace_all_uses_with(value, lambda reader: reader not in folded)
        for _, operand, _ in made:
            self.erase(operand)

    def _made_for(self, user: Node, operand: Node, plan: Plan) -> Node:
        if user is not operand and operand not in user.all_input_nodes:
            raise InvariantError(f"{user.name} does not read {operand.name}, which was to be replaced there")
        value = self.make(plan, behind_placeholders(user) if user is operand else user)
        value.meta.setdefault("val", operand.meta["val"])
        return value

    def after(self, node: Node, axis: int, mapping: ChannelMap, readers: set[Node] | None) -> Node:
        """Apply a map to an activation, for the given readers or for all."""
        existing = [user for user in node.users if readers is None or user in readers]
        value = tensor_of(node)
        with self._graph.inserting_before(behind_placeholders(node)):
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

    def _rebuild(self, plan: Rebuilt, copies: dict[Node, Node], bias: tuple[str, Node] | None) -> Node:
        with self._graph.inserting_before(plan.node):
            made = self._graph.node_copy(plan.node, lambda n: copies.get(n, n))
        made.meta = dict(plan.node.meta)
        if bias is not None:
            set_arguments(made, {bias[0]: bias[1]})
        if plan.resized is not None:
            resize(made, *plan.resized)
            return made  # what reads the sizes alone goes on reading the old ones
        if not all(lies_alike(operand, copy) for operand, copy in copies.items()):
            refresh(made)
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


def _depends_on(node: Node, values: set[Node]) -> bool:
    return node in values or any(_depends_on(operand, values) for operand in node.all_input_nodes)
