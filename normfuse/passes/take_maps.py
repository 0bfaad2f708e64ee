"""A norm with stored statistics that reads ``D x + t`` comes to read ``x``: its statistics become those of x.

    mean' = (mean - t) / D        variance' = (variance + eps) / D^2        eps' = 0
    scale' = scale sgn(D)         skip' = skip D                            shift' = shift + skip t

where a norm is ``(x - mean) scale / sqrt(variance + eps) + shift + skip x``. Without a variance the scale
takes all of ``D``. Numerics class: reassociated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch._ops import OpOverload
from torch.fx import Graph, Node

from normfuse.analysis.affine_map import Standardise
from normfuse.analysis.channel_map import dtype_of, vector
from normfuse.analysis.over_sums import image
from normfuse.analysis.plan import Maps, linear_parts
from normfuse.folding import Premise, Question
from normfuse.ir.calls import aten
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import as_row_major, call, cast
from normfuse.ir.location import described
from normfuse.ir.program import Program
from normfuse.ir.region import NormRegion, Operands, norm_of
from normfuse.ir.sizes import static_size, tensor_of
from normfuse.passes.place import Placement
from normfuse.passes.recipes import recipe_of, value_of
from normfuse.report import Refusal

__all__ = ["refusal_of_division", "take_maps"]

_ROLES = ("mean", "variance", "skip")


def refusal_of_division(
    norm: Node, maps: Maps, channels: int | None, placement: Placement, program: Program
) -> Refusal | None:
    """Why values cannot be held divided by the factors of ``maps``, if so; a premise where they can."""
    if channels is None:
        return Refusal("weight_shape", f"the size of {described(norm)} is not a fixed number", norm.name)
    made = _Statistics(maps, channels, norm, placement).image(aten.new_ones.default, linear_parts(maps))
    (recipe, sources), value = recipe_of(program, made), value_of(program, made)
    placement.discard([made])
    question = Question("divisor", norm.meta["val"].dtype)
    if (norm.name, "divisor") in program.doubted or not (value.is_meta or question.is_met([value])):
        dtype = str(question.dtype).removeprefix("torch.")
        return Refusal(
            "divisor",
            f"{described(norm)} scales a channel by so little or so much that what is added to it could not "
            f"be divided by that in {dtype}", norm.name, "use float32 or a wider dtype",
        )  # fmt: skip
    program.premises.append(Premise(norm.name, question, (recipe,), (sources,)))
    return None


def take_maps(norm: Node, maps: Maps, placement: Placement) -> None:
    """Make ``norm`` the one that gives of x what it gives of ``maps`` of x, which multiply by no zero."""
    region, gm = norm_of(norm), norm.graph.owning_module
    assert region is not None
    assert gm is not None
    axis, *_ = region.other_axes(norm)
    channels, eps = static_size(norm, axis), region.spec.eps
    assert channels is not None
    assert eps is not None
    operands = _Statistics(maps, channels, norm, placement).of(region.operands(norm), eps)
    spec = replace(
        region.spec,
        eps=0.0,
        has_scale=True,
        has_shift=operands.shift is not None,
        stored=tuple(role for role in _ROLES if getattr(operands, role) is not None),
    )
    gm.add_submodule(str(norm.target), NormRegion(spec, _body(operands, axis, norm), region.spelling))
    norm.args = operands.as_args()


@dataclass(frozen=True)
class _Statistics:
    """Vectors with an entry for each channel, made ahead of ``before``."""

    maps: Maps
    channels: int
    before: Node
    placement: Placement

    def of(self, given: Operands, eps: float) -> Operands:
        """The operands of the norm of x."""
        gain = self.image(aten.new_ones.default, linear_parts(self.maps))
        is_linear = all(m.is_linear for m in self.maps)
        moved = None if is_linear else self.image(aten.new_zeros.default, self.maps)
        mean, variance, shift, skip = given.mean, given.variance, given.shift, given.skip
        if moved is not None:
            mean = self._neg(moved) if mean is None else self._two(aten.sub.Tensor, mean, moved)
            if skip is not None:
                added = self._two(aten.mul.Tensor, skip, moved)
                shift = added if shift is None else self._two(aten.add.Tensor, shift, added)
        sign = gain
        if variance is not None:
            variance = self._scaled_variance(variance, eps, gain)
            sign = self._made({gain}, lambda graph: call(graph, aten.sign.default, gain))
        return Operands(
            given.source,
            scale=sign if given.scale is None else self._two(aten.mul.Tensor, given.scale, sign),
            shift=shift,
            mean=None if mean is None else self._two(aten.div.Tensor, mean, gain),
            variance=variance,
            skip=None if skip is None else self._two(aten.mul.Tensor, skip, gain),
        )

    def image(self, start: OpOverload, maps: Maps) -> Node:
        """What maps make of a vector of ones or zeros."""
        sources = {source for mapping in self.maps for source in mapping.sources}
        like = min(sources)

        def emit(graph: Graph) -> Node:
            wide = cast(graph, like, opmath(dtype_of(like)))
            return image(graph, maps, call(graph, start, wide, [self.channels]))

        return self._made(sources, emit)

    def _scaled_variance(self, variance: Node, eps: float, gain: Node) -> Node:
        def emit(graph: Graph) -> Node:
            wide = cast(graph, vector(graph, variance, None), dtype_of(gain))
            square = call(graph, aten.mul.Tensor, gain, gain)
            return call(graph, aten.div.Tensor, call(graph, aten.add.Tensor, wide, eps), square)

        return self._made({variance, gain}, emit)

    def _neg(self, value: Node) -> Node:
        return self._made({value}, lambda graph: call(graph, aten.neg.default, value))

    def _two(self, operator: OpOverload, left: Node, right: Node) -> Node:
        def emit(graph: Graph) -> Node:
            wide = cast(graph, vector(graph, left, None), dtype_of(right))
            return call(graph, operator, wide, right)

        return self._made({left, right}, emit)

    def _made(self, sources: set[Node], emit: Callable[[Graph], Node]) -> Node:
        return self.placement.made_of(sources, self.before, emit)


def _body(operands: Operands, axis: int, norm: Node) -> Graph:
    """The norm with these operands, whose result lies in memory as that of ``norm`` did."""
    graph, held = Graph(), dict[str, Node]()
    for role in ("source", "scale", "shift", *_ROLES):
        operand = getattr(operands, role)
        if operand is not None:
            held[role] = graph.placeholder(role)
            held[role].meta = {"val": operand.meta["val"]}
    scale, shift, mean, variance, skip = (held.get(role) for role in ("scale", "shift", *_ROLES))
    mapping = Standardise(0.0, scale, shift, mean, variance, skip)
    value = mapping.emit(graph, held["source"], axis)
    graph.output(as_row_major(graph, value, tensor_of(norm)))
    return graph
