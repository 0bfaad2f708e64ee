"""The kinds of norms that a user may name: those of normfuse, and those that somebody taught it."""

from __future__ import annotations

from normfuse.ir.spec import KINDS

__all__ = ["kinds_may_be_taught", "known_kinds", "teach", "teach_by"]

_taught: set[str] = set()
#: Functions from outside whose norms may be of any kind: what they return is known once it was seen.
_teachers: set[str] = set()


def known_kinds() -> tuple[str, ...]:
    """Every kind that there is, as far as anybody has said or seen."""
    return (*KINDS, *sorted(_taught.difference(KINDS)))


def teach(kind: str) -> None:
    """There are norms of this kind."""
    _taught.add(kind)


def teach_by(module: str) -> None:
    """A function of this module describes norms, of kinds that it does not name in advance."""
    if module.split(".")[0] != "normfuse":
        _teachers.add(module)


def kinds_may_be_taught() -> bool:
    """Whether a kind that is not known may still turn out to be one."""
    return bool(_teachers)
