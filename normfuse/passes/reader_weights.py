"""The weights and biases of what reads a changed value, made of what they were and of the change."""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.beside import Beside
from normfuse.analysis.channel_map import ChannelMap, Diagonal, dtype_of
from normfuse.analysis.own_tap import OwnTap
from normfuse.analysis.plan import Leaf, linear_parts
from normfuse.analysis.reads import Read, before_rounding
from normfuse.ir.calls import aten, bind
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import call, cast
from normfuse.ir.sizes import shape_of
from normfuse.passes.runs import times_shift
from normfuse.passes.weight_algebra import WeightAlgebra, sources_of

__all__ = ["ReaderWeights"]


class ReaderWeights(WeightAlgebra):
    """What readers take in place of what they have."""

    def behind(self, read: Read) -> dict[str, Node]:
        """The weight that reads a norm, and its bias, with what the norm does."""
        changed = {read.weight: self._rounded(self.fold(read.leaf, read.node), read)}
        return changed | {read.bias: self.shifted(read)} if read.has_shift else changed

    def shifted(self, read: Read) -> Node:
        """The bias of a reader plus what its weight makes of the shift."""
        given, how = bind(read.node)[read.bias], read.reading
        bias = before_rounding(given) if isinstance(given, Node) else None
        plan = ("bias", read.leaf, read.maps, bias, read.dtype, how.summed, how.kept, how.shape)
        if plan not in self._folded:
            sources = {read.leaf.node, *sources_of(read.maps), *([] if bias is None else [bias])}
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
            sources = {*sources_of(maps), *([bias] if isinstance(bias, Node) else [])}
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
