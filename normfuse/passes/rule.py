"""What a rule is: what it claims, how exactly, who said so first, and what does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from normfuse.passes.work import Work
from normfuse.report import Refusal, Site

__all__ = ["Claim", "Numerics", "Rule"]


class Numerics(str, Enum):
    """How far the result of a rule may be from what it replaces.

    BITWISE: not at all. ROUNDING: the same sums, rounded elsewhere. REASSOCIATED: the same number in exact
    arithmetic, by other sums; judged against float64. APPROXIMATE: another number, within a bound that the
    rule states; never unless ``normfuse.allow`` says so.
    """

    BITWISE = "bitwise"
    ROUNDING = "rounding"
    REASSOCIATED = "reassociated"
    APPROXIMATE = "approximate"


@dataclass(frozen=True)
class Claim:
    """An equation, its source, and the conditions under which it holds here.

    ``forms`` are what the equation says by the place that it is used at, where there are several.
    """

    name: str
    numerics: Numerics
    equation: str
    source: str = ""
    conditions: tuple[str, ...] = ()
    forms: Mapping[str, str] = field(default_factory=dict)


def _always(work: Work) -> Refusal | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Rule(Claim):
    """A claim about norms, and what applies it; a user may switch it off by its name.

    Attributes:
        run: changes what the rule can change, and records a reason for each norm of its kinds that it cannot.
        waits: whether a norm stays for want of this rule, where the rule does not run.
        targets: those under which it runs; all where there are none.
        idle: why it runs on nothing of this program, if so.
    """

    run: Callable[[Work], None]
    waits: Callable[[Site], bool]
    targets: tuple[str, ...] = ()
    idle: Callable[[Work], Refusal | None] = _always

    def serves(self, target: str) -> bool:
        """Whether the rule runs under this target."""
        return not self.targets or target in self.targets
