"""Two programs compared on inputs that are found in the reference itself: stored, random and hostile ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.export import ExportedProgram

from normfuse.errors import VerificationError, cause
from normfuse.verify.comparing import Pair
from normfuse.verify.equivalence import Equivalence, LeafError, unjudged_paths
from normfuse.verify.hostile import QUICK, hostile_inputs
from normfuse.verify.judge import NoYardstickError
from normfuse.verify.oracles import oracle_of
from normfuse.verify.random_inputs import random_values
from normfuse.verify.signature import Leaf, arguments, leaves_of
from normfuse.verify.sizes import Sizes, other_sizes, stored_sizes

__all__ = ["Case", "CaseOutcome", "ProgramEquivalence", "cases_of", "compare_programs"]


@dataclass(frozen=True)
class Case:
    """One call of a program; ``kind`` is ``stored``, ``random`` or ``hostile``."""

    kind: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class CaseOutcome:
    """What became of one case; without ``equivalence`` the ``note`` says why it could not be judged."""

    kind: str
    name: str
    ok: bool
    equivalence: Equivalence | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        found = None if self.equivalence is None else self.equivalence.to_dict()
        return {"kind": self.kind, "name": self.name, "ok": self.ok, "note": self.note, "equivalence": found}


@dataclass(frozen=True)
class ProgramEquivalence(Equivalence):
    """The outcome over all cases; its leaves are those of every case, named ``case: leaf``."""

    cases: tuple[CaseOutcome, ...] = ()

    @classmethod
    def over(cls, cases: Sequence[CaseOutcome]) -> ProgramEquivalence:
        """Sum up ``cases``; every output has to have been judged on one of them at least."""
        total = Equivalence.of([leaf for case in cases for leaf in _named(case)])
        found = [case.equivalence for case in cases if case.equivalence is not None]
        unjudged = unjudged_paths([leaf for one in found for leaf in one.leaves])
        judged = any(leaf.judged for leaf in total.leaves)
        return cls(
            ok=judged and not unjudged and all(case.ok for case in cases),
            max_abs_error=total.max_abs_error,
            max_rel_error=total.max_rel_error,
            error_ratio=total.error_ratio,
            leaves=total.leaves,
            unjudged=unjudged,
            cases=tuple(cases),
        )

    @property
    def differs(self) -> bool:
        return not all(case.ok for case in self.cases)

    def to_dict(self) -> dict[str, Any]:
        summary = super().to_dict()
        del summary["leaves"]
        return {**summary, "cases": [case.to_dict() for case in self.cases]}


def _named(case: CaseOutcome) -> list[LeafError]:
    leaves = case.equivalence.leaves if case.equivalence is not None else ()
    return [replace(leaf, path=f"{case.name}: {leaf.path}") for leaf in leaves]


def cases_of(
    exported: ExportedProgram, random: int | None = None, hostile: bool = True, seed: int = 0,
    thorough: bool = False,
) -> list[Case]:  # fmt: skip
    """Calls that the program should take.

    The stored inputs; ``random`` times random ones (once, or four times when ``thorough``), every other time
    of other sizes where some are open; and hostile ones, all kinds of them when ``thorough``.
    """
    count = (4 if thorough else 1) if random is None else random
    names = None if thorough else QUICK
    made = [Case("stored", "stored", *_stored(exported))] if exported.example_inputs is not None else []
    return [*made, *(_case(exported, *one) for one in _generated(exported, count, hostile, names, seed))]


def _stored(exported: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = exported.example_inputs
    return tuple(args), dict(kwargs)


def _case(exported: ExportedProgram, kind: str, name: str, values: list[Any]) -> Case:
    return Case(kind, name, *arguments(exported, values))


def _generated(
    exported: ExportedProgram, random: int, hostile: bool, names: Collection[str] | None, seed: int
) -> Iterator[tuple[str, str, list[Any]]]:
    leaves = leaves_of(exported)
    if all(leaf.shape is None for leaf in leaves):
        return
    sizes = stored_sizes(exported, leaves)
    others = other_sizes(exported, sizes)
    for number in range(random):
        differ = number % 2 == 0 and others != sizes
        name = f"random {number + 1}" + (f", {_brief(leaves, others)}" if differ else "")
        yield "random", name, random_values(leaves, others if differ else sizes, seed + number)
    if hostile:
        like = random_values(leaves, sizes, seed)
        bounds = [leaf.bound for leaf in leaves]
        for name, values in hostile_inputs(like, seed, bounds=bounds, names=names):
            yield "hostile", name, values


def _brief(leaves: list[Leaf], sizes: Sizes) -> str:
    """Each open size where it is first seen: ``x.size(0)=3``."""
    named: dict[Any, str] = {}
    for leaf in leaves:
        for dim, size in enumerate(leaf.shape or ()):
            if isinstance(size, torch.SymInt):
                named.setdefault(size.node.expr, f"{leaf.name}.size({dim})")
    return ", ".join(f"{named.get(symbol, symbol)}={size}" for symbol, size in sizes.items())


def compare_programs(
    reference: ExportedProgram,
    candidate: ExportedProgram,
    cases: Sequence[Case] | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> ProgramEquivalence:
    """Judge ``candidate`` on each case, as :func:`normfuse.verify` does.

    A case that the reference itself cannot run, or whose sizes depend on its rounding, is left out of the
    judgement and says so.

    Raises:
        VerificationError: when the programs do not take the same inputs.
    """
    _require_same_inputs(reference, candidate)
    pair = Pair(reference.module(), candidate.module(), oracle_of(reference))
    outcomes = []
    for case in cases_of(reference) if cases is None else cases:
        progress(case.name)
        outcomes.append(_outcome(case, pair))
    return ProgramEquivalence.over(outcomes)


def _require_same_inputs(reference: ExportedProgram, candidate: ExportedProgram) -> None:
    expected, found = ([leaf.name for leaf in leaves_of(p)] for p in (reference, candidate))
    if expected != found or reference.call_spec.in_spec != candidate.call_spec.in_spec:
        raise VerificationError(
            f"the reference takes ({', '.join(expected)}), the candidate ({', '.join(found)}): "
            "they are not versions of one program"
        )


def _outcome(case: Case, pair: Pair) -> CaseOutcome:
    try:
        original = pair.run_reference(case.args, case.kwargs)
    except Exception as error:
        return _not_judged(case, True, f"the reference does not take it: {cause(error)}")
    try:
        rewritten = pair.run_candidate(case.args, case.kwargs)
    except Exception as error:
        return _not_judged(case, False, f"the candidate does not take it: {cause(error)}")
    try:
        found = pair.judged(case.args, case.kwargs, original, rewritten, case.kind == "hostile")
    except VerificationError as error:
        return _not_judged(case, isinstance(error, NoYardstickError), str(error).splitlines()[0])
    return CaseOutcome(case.kind, case.name, not found.differs, found)


def _not_judged(case: Case, ok: bool, note: str) -> CaseOutcome:
    return CaseOutcome(case.kind, case.name, ok, note=note)
