"""Which values of a stream can change to another basis: those whose operands and readers all do.

A mean may be removed from some values of a stream and not from others, since nobody minds. Coordinates are
another matter: what adds two values needs both in the same ones.
"""

from __future__ import annotations

from normfuse.analysis.centring import Decision
from normfuse.analysis.stream import Stream, Value

__all__ = ["keep_together"]


def keep_together(decision: Decision, stream: Stream) -> list[Value]:
    """Leave in a decision what can change basis; returns the values that were left out of it."""
    readers: dict[Value, list[Value]] = {}
    for value, operands in stream.operands.items():
        for operand in operands:
            readers.setdefault(operand, []).append(value)
    left = set(decision.centred)
    while True:
        torn = {value for value in left if not _holds(value, left, decision, stream, readers)}
        if not torn:
            break
        left -= torn
    dropped = [value for value in decision.centred if value not in left]
    read = {norm for value in left for norm in stream.norms.get(value, ())}
    decision.centred = [value for value in decision.centred if value in left]
    decision.plans = {value: plan for value, plan in decision.plans.items() if value in left}
    decision.converted = [norm for norm in decision.converted if norm in read]
    decision.cut = decision.cut if decision.cut in left else None
    return dropped


def _holds(
    value: Value,
    left: set[Value],
    decision: Decision,
    stream: Stream,
    readers: dict[Value, list[Value]],
) -> bool:
    """Whether all that a value is made of, where it is not changed itself, and all that reads it changes."""
    if value != decision.cut and not all(operand in left for operand in stream.operands.get(value, ())):
        return False
    if value == decision.cut and value in stream.raw:
        return True  # readers that want it as it was go on reading that
    converted = set(decision.converted)
    norms = all(norm in converted for norm in stream.norms.get(value, ()))
    return norms and all(reader in left for reader in readers.get(value, ()))
