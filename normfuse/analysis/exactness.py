"""Values that nothing has rounded to their dtype: a map on them would round where the model does not.

    RMS(wide(C h))  is  LN(wide(h))  up to the rounding of C h, which is that of h where h was rounded itself

Inputs, parameters, rows of tables and their copies are exact in a narrow dtype; what an operator computed in
it is not.
"""

from __future__ import annotations

from normfuse.analysis.contraction import CONTRACTIONS
from normfuse.analysis.flow import Blocks
from normfuse.analysis.operator_table import flow
from normfuse.analysis.stream import Stream, Value, spread_rawness
from normfuse.ir.calls import aten, is_call, known_as
from normfuse.ir.location import described
from normfuse.ir.sizes import digits_added, widened_by
from normfuse.report import Refusal

__all__ = ["exact_operand", "keep_exact"]

#: Operators that compute, and round what they computed to the dtype of their result, besides contractions.
_ROUND = (
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar,
    aten.mean.dim, aten.sum.dim_IntList, aten.index_add.default, aten.lerp.Tensor, aten.lerp.Scalar,
)  # fmt: skip


def keep_exact(stream: Stream) -> None:
    """Make values raw that are exact and that a norm, a cast or a sum takes to a wider dtype."""
    members = set(stream.members)
    for value in stream.members:
        for norm in stream.norms.get(value, ()):
            if digits_added(norm, value[0]) > 0:
                _keep(value, stream, members)
        for operand in _widened(value, stream):
            _keep(operand, stream, members)
    spread_rawness(stream)


def exact_operand(value: Value, stream: Stream) -> Refusal | None:
    """Why an operator that takes values to a wider dtype must see them as they are, if so."""
    exact = [operand for operand in _widened(value, stream) if _is_exact(operand, stream)]
    return next((stream.raw.get(operand) or _refusal(operand) for operand in exact), None)


def _keep(value: Value, stream: Stream, members: set[Value]) -> None:
    if value in members and _is_exact(value, stream):
        stream.raw.setdefault(value, _refusal(value))


def _widened(value: Value, stream: Stream) -> list[Value]:
    """The operands that a cast, or a sum with wider values, takes to a wider dtype."""
    carried = stream.carries.get(value)
    operands = () if carried is None else carried.operands
    return [operand for operand in operands if digits_added(value[0], operand[0]) > 0]


def _is_exact(value: Value, stream: Stream) -> bool:
    """Whether nothing that rounds stands between a value and where it comes from, on some way."""
    seen, stack = {value}, [value]
    while stack:
        current = stack.pop()
        if known_as(current[0]) in CONTRACTIONS or is_call(current[0], *_ROUND) or widened_by(current[0]) < 0:
            continue
        carried, part = stream.carries.get(current), stream.parts.get(current)
        if carried is None and part is None:
            return True
        operands = carried.operands if part is None else ((part.whole, part.axis),)  # type: ignore[union-attr]
        fresh = [operand for operand in operands if operand not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False


def _refusal(value: Value) -> Refusal:
    node, found = value[0], flow(*value)
    if isinstance(found, Blocks):
        return found.refusal
    return Refusal(
        "narrow_values",
        f"{described(node)} holds exact values, which a changed weight would round to their narrow dtype",
        node.name,
        "keep what the norm reads in the dtype that it computes in",
    )  # fmt: skip
