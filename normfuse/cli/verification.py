"""What the verification of a rewrite came to, in a sentence and as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normfuse.rewriting import Rewritten

__all__ = ["Verification", "verification_of"]


@dataclass(frozen=True)
class Verification:
    """A rewrite that was verified: at which ``level``, and the worst error over the original's.

    ``error_ratio`` is None where nothing was changed, so that there was nothing to compare.
    """

    level: str
    error_ratio: float | None
    details: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"level": self.level, "ok": True, "error_ratio": self.error_ratio, **self.details}

    def __str__(self) -> str:
        if self.error_ratio is None:
            return "no norm was changed, so there was nothing to verify"
        sets = len(self.details.get("inputs", ()))
        where = (
            "on the example inputs" if self.level == "output" else f"norm by norm, on {sets} sets of inputs"
        )
        return (
            f"verified {where}: at most {self.error_ratio:.3g} times the original's own distance from float64"
        )


def verification_of(result: Rewritten, level: str) -> Verification | None:
    """What was found when ``result`` was made with this ``verify=``; None when it was not verified."""
    if level == "output" and result.equivalence is not None:
        found = result.equivalence
        return Verification(level, found.error_ratio, found.to_dict())
    if level not in ("sites", "thorough"):
        return None
    report = result.report
    changed = [site for site in report.sites if site.action not in ("kept", "reverted")]
    if not changed:
        return Verification(level, None, {"inputs": {}})
    if not report.errors:
        return None
    ratios = [ratio for errors in (report.errors, *(s.errors for s in changed)) for ratio in errors.values()]
    return Verification(level, max(ratios), {"inputs": dict(report.errors)})
