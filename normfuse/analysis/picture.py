"""The streams of a program for people: what writes each, its norms, and what reads them.

Nothing is decided here. A norm over one axis of its input is followed as :mod:`normfuse.analysis.stream`
follows it, whatever its kind; any other has the operator before it for a writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import Node

from normfuse.analysis.flow import Scales
from normfuse.analysis.operator_table import flow
from normfuse.analysis.rows_layout import LAYOUT
from normfuse.analysis.stream import Stream, Value, explore, read_along
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import aten
from normfuse.ir.effects import Effects
from normfuse.ir.location import described, module_path, operator_name, source_line
from normfuse.ir.readers import value_readers
from normfuse.ir.region import norm_of
from normfuse.report_stream import Operation, Part

__all__ = ["pictured"]

#: What hands a value on to whoever reads it.
_HANDED_ON = LAYOUT | {
    aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.contiguous.default, aten.clone.default,
    aten.dropout.default,
}  # fmt: skip


def pictured(sites: Mapping[Node, int], weights: WeightValues, effects: Effects) -> list[list[Part]]:
    """The streams in the order of their first norms; ``sites`` numbers the lifted norms."""
    if not sites:
        return []
    order = {node: i for i, node in enumerate(next(iter(sites)).graph.nodes)}
    drawing, done = _Drawing(sites, weights, order), set[Node]()
    found: list[list[Part]] = []
    for norm in sites:
        if norm in done:
            continue
        value = _read(norm)
        parts = drawing.alone(norm) if value is None else drawing.of(explore(value, weights, effects, _read))
        done |= {node for node, part in parts if part.role == "norm"}
        found.append([part for _, part in parts])
    return found


def _read(node: Node) -> Value | None:
    """The value and axis that a norm with statistics of its input along one axis reads."""
    region = norm_of(node)
    if region is None or region.spec.statistics != "input":
        return None
    return read_along(node, region)


@dataclass(frozen=True)
class _Drawing:
    sites: Mapping[Node, int]
    weights: WeightValues
    order: dict[Node, int]

    def of(self, stream: Stream) -> list[tuple[Node, Part]]:
        """All that stands on a stream, in the order of the graph."""
        members = {node for node, _ in stream.members}
        norms = {norm for found in stream.norms.values() for norm in found if norm in self.sites}
        parts = {self._origin(value): "writer" for value in stream.members if self._writes(value, stream)}
        for carried in stream.carries.values():
            inside = any(operand in members for operand, _ in carried.operands)
            parts |= {o: "writer" for o, _ in carried.operands if inside and o in self.weights}
        readers = {user for node in members for user in value_readers(node)} - members - norms - set(parts)
        parts |= dict.fromkeys(readers, "reader") | dict.fromkeys(norms, "norm")
        stop = members | norms
        return [(n, self._part(n, parts[n], stop)) for n in sorted(parts, key=self._place)]

    def alone(self, norm: Node) -> list[tuple[Node, Part]]:
        """A norm of values that nothing else is known of."""
        before = norm_of(norm).operands(norm).source  # type: ignore[union-attr]
        return [(before, self._part(before, "writer", {norm})), (norm, self._part(norm, "norm", {norm}))]

    def _writes(self, value: Value, stream: Stream) -> bool:
        return not stream.operands.get(value) and value[0] not in self.weights

    def _origin(self, value: Value) -> Node:
        """What a factor of each channel multiplies stands for the product."""
        node, axis = value
        while isinstance(found := flow(node, axis), Scales):
            node, axis = found.operand, found.axis
        return node

    def _part(self, node: Node, role: str, stop: set[Node]) -> Part:
        operation = self._operation(node)
        if role == "norm":
            readers = dict.fromkeys(self._operation(reader) for reader in _final_readers(node))
            return Part(role, operation, self.sites[node], tuple(readers))
        after = self._norms_behind(node, stop) if role == "writer" else []
        return Part(role, operation, after=tuple(sorted(self.sites[norm] for norm in after)))

    def _norms_behind(self, writer: Node, stop: set[Node]) -> list[Node]:
        """The norms of the stream on the way back from a writer, until the stream or the weights are met."""
        found: list[Node] = []
        seen, stack = {writer}, [writer]
        while stack:
            fresh = [n for n in stack.pop().all_input_nodes if n not in seen and n not in self.weights]
            seen.update(fresh)
            found += [n for n in fresh if n in stop and n in self.sites]
            stack += [n for n in fresh if n not in stop]
        return found

    def _operation(self, node: Node) -> Operation:
        region = norm_of(node)
        module, source = module_path(node), source_line(node)
        if region is not None:
            return Operation(region.spec.kind, module, source)
        if node in self.weights and node.op == "placeholder":
            return Operation("weight", self.weights.label(node))
        if node.op != "call_function":
            return Operation(described(node))
        return Operation(operator_name(node), module, source)

    def _place(self, node: Node) -> int:
        return self.order[node]


def _final_readers(norm: Node) -> list[Node]:
    """What reads the result of a norm, behind moves of axes and casts."""
    found: list[Node] = []
    seen, stack = {norm}, [norm]
    while stack:
        for user in value_readers(stack.pop()):
            if user not in seen:
                seen.add(user)
                (stack if user.target in _HANDED_ON else found).append(user)
    return found
