"""Where means come into a stream: a dominator tree whose roots are the values that bring one."""

from __future__ import annotations

from dataclasses import dataclass, field

from normfuse.analysis.stream import Value
from normfuse.report import Refusal

__all__ = ["Dirt"]


@dataclass
class Dirt:
    """The tree: what dominates each value, how deep it is, and the reason that it is not clean."""

    parent: dict[Value, Value | None] = field(default_factory=dict)
    depth: dict[Value, int] = field(default_factory=dict)
    reason: dict[Value, Refusal] = field(default_factory=dict)

    def source(self, value: Value, reason: Refusal) -> None:
        """``value`` is dirty by itself."""
        self.parent[value], self.depth[value], self.reason[value] = None, 1, reason

    def below(self, value: Value, operands: list[Value]) -> None:
        """``value`` is dirty by these operands; tables are named last, since a centring could clean them."""
        first, *rest = operands
        meet: Value | None = first
        for other in rest:
            meet = self._meet(meet, other)
        self.parent[value] = meet
        self.depth[value] = 1 if meet is None else self.depth[meet] + 1
        reasons = [self.reason[operand] for operand in operands]
        self.reason[value] = next((r for r in reasons if r.code != "table_copy"), reasons[0])

    def _meet(self, a: Value | None, b: Value | None) -> Value | None:
        while a is not None and b is not None and a != b:
            if self.depth[a] >= self.depth[b]:
                a = self.parent[a]
            else:
                b = self.parent[b]
        return a

    def chain(self, value: Value) -> list[Value]:
        """The values at which one centring would clean ``value``, itself first."""
        found: list[Value] = []
        current: Value | None = value
        while current is not None:
            found.append(current)
            current = self.parent[current]
        return found
