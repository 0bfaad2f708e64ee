"""Norms with stored statistics vanish into the weights before, behind or beside them.

    A(x) = D (x - mean) + shift,    D = diag(scale / sqrt(variance + eps))
    A(W a + b) = (D W) a + A(b)                                     into the writer
    W A(x) + b = (W D) x + (b + W A(0))                             into every reader
    A(x) + f = D (x - mean + f / D) + shift                         over a sum on the way to one
    A(x) + W x + b = (D + W) x + (b + A(0))                         into a weight beside it
    A(W x + b + x) = D (W + I) x + A(b)                             into a writer, with what it read

Exact for a linear or convolution with any strides, dilation and groups (Markus, 2018, and many others);
zeros around the input of a reading convolution are not mapped, so there the norm stays. Numerics class:
reassociated.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node

from normfuse.analysis.absorb import absorb
from normfuse.analysis.affine_map import Standardise
from normfuse.analysis.beside import Beside, beside
from normfuse.analysis.forward import Pushed, push
from normfuse.analysis.own_tap import OwnTap
from normfuse.analysis.plan import Leaf, Plan, linear_parts, redirected
from normfuse.analysis.weights import divided_refusal
from normfuse.folding import Premise
from normfuse.ir.calls import aten, set_arguments
from normfuse.ir.effects import aliased_by
from normfuse.ir.emit import call
from normfuse.ir.location import described
from normfuse.ir.readers import value_readers
from normfuse.ir.refresh import refresh_readers
from normfuse.ir.region import NormRegion, norm_of
from normfuse.ir.sizes import is_row_major, lies_alike, rank_of, static_size, tensor_of
from normfuse.passes.decisions import weights_of
from normfuse.passes.evidence import Certificate, folded_before, folded_behind, folded_beside
from normfuse.passes.large_taps import leaves_of, refusal_of_large_tap
from normfuse.passes.place import Placement
from normfuse.passes.premises import rest_on_precision, rest_on_range, small_shift
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.settle_shifts import note_shift, note_shifts
from normfuse.passes.stored_values import (
    refusal_of_cancellation,
    refusal_of_values,
    shift_is_large,
    watch_statistics,
)
from normfuse.passes.take_maps import refusal_of_division, take_maps
from normfuse.passes.work import Work
from normfuse.patterns.around import order_is_free
from normfuse.report import Refusal, Site

__all__ = ["FOLD_AFFINE", "fold_affine", "is_stored"]

#: Reasons that lie in what a norm reads; where its readers have a more particular one, that is named.
_INHERENT = ("stream_enters_graph", "nonlinear_writer", "post_norm", "raw_reader")
_PARTICULAR = ("zero_padding", "no_bias", "shift_blocked", "impure_operator", "weight_mutated")


def is_stored(region: NormRegion | None) -> bool:
    """Whether a norm is one scale and one shift per channel."""
    return region is not None and region.spec.is_stored


def fold_affine(work: Work) -> None:
    """Fold every norm with stored statistics that weights can take; record a reason for each that stays."""
    fold = _Fold(work)
    pending = [node for node in work.sites if is_stored(norm_of(node)) and work.may(node, FOLD_AFFINE.name)]
    while pending:
        left = [node for node in pending if not fold.run(node)]
        if len(left) == len(pending):
            return
        pending = left[::-1]


class _Fold:
    """Folds one norm at a time; what was folded before is a weight for the next."""

    def __init__(self, work: Work) -> None:
        self._work, self._weights = work, weights_of(work)
        self._placement = Placement(work.program.gm.graph)

    def run(self, node: Node) -> bool:
        """Whether the norm vanished; else its site has the reason of the last attempt."""
        site = self._work.sites[node]
        site.refusal = None
        done = self._fold(node)
        if isinstance(done, Refusal):
            site.refuse(done, FOLD_AFFINE.name)
            return False
        site.fold(FOLD_AFFINE.name, done)
        del self._work.sites[node]
        self._weights.admit(self._placement.made)
        return True

    def _fold(self, node: Node) -> Certificate | Refusal:
        """Fold the norm where it can be; what that rests on is written down before the graph changes."""
        region = norm_of(node)
        assert region is not None
        operands = region.operands(node)
        refusal = self._refuse_operands(node, region)
        if refusal is not None:
            return refusal
        if self._weights.divided:
            return divided_refusal(node)
        if region.spec.eps is None:
            return Refusal("unusual_form", f"the eps of {described(node)} is not a number", node.name)
        axis = next(d for d in range(rank_of(node)) if d - rank_of(node) not in region.spec.dims)
        maps = (Standardise.of(operands, region.spec.eps),)
        before = self._into_writers(operands.source, axis, maps)
        if not isinstance(before, Refusal):
            return self._before(node, operands.source, before)
        sibling = beside(node, operands.source, axis, self._weights)
        crosses = not self._work.program.grad_enabled
        behind: Pushed | Refusal = Pushed([], [])
        if sibling is None:
            behind = push(node, axis, maps, self._weights, crosses_sums=crosses)
        if isinstance(behind, Refusal):
            return _both(before, behind)
        refusal = refusal_of_cancellation(node, operands, region.spec.eps, self._work.program)
        if refusal is not None:
            return refusal
        if sibling is not None:
            return self._beside(node, sibling, maps[0])
        return self._behind(node, operands.source, behind)

    def _before(self, node: Node, source: Node, plan: Plan) -> Certificate | Refusal:
        proof = folded_before(FOLD_AFFINE, node, plan, self._work)
        refusal = self._refuse_taps(node, leaves_of(plan))
        refusal = refusal or self._refuse_made(node, self._placement.weights(plan, node))
        if refusal is not None:
            return refusal
        note_shifts(plan, self._shift_is_large(node), self._small_shift(node))
        made = self._replace(node, source, self._placement.make(plan, node))
        self._work.written[made] = self._work.sites[node]
        return proof

    def _shift_is_large(self, node: Node) -> bool:
        region = norm_of(node)
        assert region is not None
        return shift_is_large(node, region.operands(node), region.spec.eps or 0.0, self._work.program)

    def _small_shift(self, node: Node) -> Premise | None:
        region = norm_of(node)
        assert region is not None
        return small_shift(self._work.program, node, region.operands(node), region.spec.eps or 0.0)

    def _rest_on_precision(self, node: Node) -> None:
        region = norm_of(node)
        assert region is not None
        rest_on_precision(self._work.program, node, region.operands(node), region.spec.eps or 0.0)

    def _beside(self, node: Node, found: Beside, mapping: Standardise) -> Certificate | Refusal:
        proof = folded_beside(FOLD_AFFINE, node, found, self._work)
        tap = OwnTap(linear_parts((mapping, *found.maps)), found.groups)
        refusal = self._refuse_taps(node, [Leaf(found.weight, 0, (tap,))])
        if refusal is not None:
            return refusal
        changed = self._placement.beside(found, mapping)
        refusal = self._refuse_made(node, changed.values())
        if refusal is not None:
            return refusal
        self._rest_on_precision(node)
        set_arguments(found.reader, changed)
        note_shift(found.reader, self._shift_is_large(node), self._small_shift(node))
        self._forget_written(found)
        found.sum.replace_all_uses_with(self._placement.without_branch(found))
        self._placement.erase(found.sum)
        return proof

    def _forget_written(self, found: Beside) -> None:
        """What a changed reader hands on to the sum has another value from now on."""
        stack, seen = [found.rest], set[Node]()
        while stack:
            value = stack.pop()
            self._work.written.pop(value, None)
            seen.add(value)
            if value is not found.reader:
                stack.extend(n for n in value.all_input_nodes if n not in seen and n not in self._weights)

    def _behind(self, node: Node, source: Node, found: Pushed) -> Certificate | Refusal:
        proof = folded_behind(FOLD_AFFINE, node, found, self._work)
        refusal = self._refuse_crossing(node, found)
        if refusal is not None:
            return refusal
        changed = [self._placement.behind(read) for read in found.reads]
        made = [made for one in changed for made in one.values()]
        made += [leaf for one in found.sums for leaf in self._placement.weights(one.plan, node)]
        refusal = self._refuse_made(node, made)
        if refusal is not None:
            return refusal
        self._rest_on_precision(node)
        for read, values in zip(found.reads, changed, strict=True):
            set_arguments(read.node, values)
            note_shift(read.node)
        for norm, _, maps in found.norms:
            take_maps(norm, maps, self._placement)
        for one in found.sums:
            self._work.written.pop(one.node, None)
        self._placement.substitute([(one.node, one.other, one.plan) for one in found.sums])
        self._replace(node, source, source)
        return proof

    def _refuse_crossing(self, node: Node, found: Pushed) -> Refusal | None:
        """Why what is added behind the norm, or the norms that read it, cannot take what it does, if so."""
        for norm, _, _ in found.norms:
            refusal = self._refuse_taking(norm)
            if refusal is not None:
                return refusal
        crossed = [(one.node, one.axis, one.maps) for one in found.sums]
        for value, axis, maps in dict.fromkeys((*found.norms, *crossed)):
            size = static_size(value, axis)
            refusal = refusal_of_division(node, maps, size, self._placement, self._work.program)
            if refusal is not None:
                return refusal
        for one in found.sums:
            refusal = self._refuse_taps(node, leaves_of(one.plan))
            if refusal is not None:
                return refusal
        parts = [value for one in found.sums for value in redirected(one.plan)]
        if len(set(parts)) < len(parts):
            message = f"what is added behind {described(node)} is made of several parts of one value"
            return Refusal("raw_reader", message, node.name)
        return None

    def _refuse_taking(self, norm: Node) -> Refusal | None:
        """Why a norm cannot take maps of what it reads."""
        region = norm_of(norm)
        assert region is not None
        if norm not in self._work.sites or not self._work.may(norm, FOLD_AFFINE.name):
            message = f"{described(norm)} must stay as it is, and reads the values"
            return Refusal("raw_reader", message, norm.name)
        if region.spec.eps is None:
            return Refusal("unusual_form", f"the eps of {described(norm)} is not a number", norm.name)
        return self._refuse_operands(norm, region)

    def _refuse_taps(self, node: Node, leaves: Iterable[Leaf]) -> Refusal | None:
        program = self._work.program
        refusals = (refusal_of_large_tap(node, leaf, self._placement, program) for leaf in leaves)
        return next((refusal for refusal in refusals if refusal is not None), None)

    def _refuse_made(self, node: Node, made: Iterable[Node]) -> Refusal | None:
        return rest_on_range(self._work.program, node, list(made), self._placement)

    def _refuse_operands(self, node: Node, region: NormRegion) -> Refusal | None:
        spec, operands = region.spec, region.operands(node)
        for operand in operands.as_args()[1:]:
            if operand not in self._weights:
                return self._weights.varies(operand) or Refusal(
                    "computed_statistics",
                    f"{described(operand)}, by which {described(node)} scales or shifts, depends on the call",
                    node.name, "keep the statistics in buffers of a module",
                )  # fmt: skip
            refusal = self._weights.refusal(operand) or self._weights.refusal_apart(operand, [node])
            if refusal is not None:
                return refusal
        if spec.source_dtype != spec.out_dtype:
            return Refusal(
                "dtype_changes",
                f"{described(node)} takes {spec.source_dtype} and gives {spec.out_dtype}",
                node.name,
            )
        if not _fits(node, operands.source):
            message = f"{described(node)} changes how its result lies in memory"
            return Refusal("layout", message, node.name)
        program = self._work.program
        refusal = watch_statistics(node, operands, program)
        return refusal if refusal is not None else refusal_of_values(node, operands, spec.eps or 0.0, program)

    def _into_writers(self, source: Node, axis: int, maps: tuple[Standardise, ...]) -> Plan | Refusal:
        if source not in self._weights and len(value_readers(source)) > 1:
            message = f"{described(source)} is also read elsewhere, unchanged"
            return Refusal("raw_reader", message, source.name)
        plan = absorb(source, axis, maps, self._weights)
        changed = [] if isinstance(plan, Refusal) else [part.operand for part in redirected(plan)]
        if len(set(changed)) < len(changed):
            message = f"{described(source)} is made of several parts of one value"
            return Refusal("raw_reader", message, source.name)
        return plan

    def _replace(self, node: Node, source: Node, made: Node) -> Node:
        with node.graph.inserting_before(node):
            if not (lies_alike(node, source) or _keeps_its_order(node)):
                made = call(node.graph, aten.contiguous.default, made)
            if aliased_by(source) and _is_returned(node):
                made = call(node.graph, aten.clone.default, made)
        node.replace_all_uses_with(made)
        self._placement.erase(node)
        refresh_readers(made)
        return made


def _fits(node: Node, source: Node) -> bool:
    return lies_alike(node, source) or not _keeps_its_order(node) or order_is_free(node)


def _keeps_its_order(node: Node) -> bool:
    """Whether a norm's result lies in another order than row after row, which nothing brings about."""
    result = tensor_of(node)
    return result is None or not is_row_major(result)


def _is_returned(node: Node) -> bool:
    """Whether a value is returned, or a view of it: the caller may write to it and keep it."""
    views = [user for user in node.users if node in aliased_by(user)]
    return any(user.op == "output" for user in node.users) or any(map(_is_returned, views))


def _both(before: Refusal, behind: Refusal) -> Refusal:
    """Neither what writes the values nor what reads them can take the norm."""
    first = behind if before.code in _INHERENT and behind.code in _PARTICULAR else before
    return Refusal(
        first.code,
        f"before the norm, {before.message}; after it, {behind.message}",
        first.node,
        first.remedy,
    )


def _waits(site: Site) -> bool:
    return site.kind != "weight_standardization" and site.spec["statistics"] != "input"


FOLD_AFFINE = Rule(
    "fold_affine",
    Numerics.REASSOCIATED,
    "A(x) = D (x - mean) + shift is affine,  D = diag(scale / sqrt(variance + eps) + skip) per channel",
    "Ioffe, Szegedy 2015, arXiv 1502.03167, algorithm 2; Ding et al. 2021, arXiv 2101.03697, section 3.3",
    (
        "stored statistics: what the norm scales and shifts by is made of weights alone",
        "reached in full: every value between the norm and these operators is theirs alone",
        "changed weights: each takes D, and a bias the shift, in its own copy",
    ),
    {
        "before": "A(W a + b) = (D W) a + A(b)",
        "behind": "W A(x) + b = (W D) x + (b + W A(0))",
        "beside": "A(x) + W x + b = (D + W) x + (b + A(0))",
    },
    run=fold_affine,
    waits=_waits,
)
