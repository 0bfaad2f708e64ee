"""``verify="sites"``: run every norm before and after, and undo the rewrites that lose precision.

    rewrite -> run the original, the rewritten program and the float64 oracle side by side
            -> rewrite into the most exact forms that there are
            -> forbid the sites over budget -> rewrite again, until no site is over budget

Each program returns the values of its norms beside its outputs, so the first value that is over budget names
the site to blame. A site that is still over budget when its own norm was left alone has weights that others
changed; then its whole stream stays as it was.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from normfuse.errors import VerificationError, cause
from normfuse.folding import Folded
from normfuse.ir.program import Program
from normfuse.options import Options
from normfuse.passes.pipeline import run_pipeline
from normfuse.passes.work import Work
from normfuse.report import Refusal, Report, Site
from normfuse.torch_compat import outside_tracing
from normfuse.verify.dtypes import is_real_number
from normfuse.verify.equivalence import LeafError
from normfuse.verify.hostile import hostile_inputs
from normfuse.verify.judge import BUDGET, NoYardstickError
from normfuse.verify.numerics import is_yardstick, judge_where_finite, one_rounding_off, same_bits
from normfuse.verify.oracle import run_wide
from normfuse.verify.probe import Probe
from normfuse.verify.widen import widen

__all__ = ["rewrite_verified"]

_Veto = tuple[Refusal, dict[str, float]]
"""Why a site stays, and the errors that it had when it was changed."""

_GENTLE_ROUNDS = 4
"""Rounds in which one site at a time is given up; after them all that are over budget."""


def rewrite_verified(
    program: Program, options: Options, inputs: Sequence[Any]
) -> tuple[Program, Report, list[Folded]]:
    """Rewrite a copy of ``program``, verified site by site on ``inputs`` and on hostile ones like them.

    ``inputs`` are real values for all placeholders, in order; they and the random state stay as they are.
    Returns the rewritten copy. Sites over budget stay as they were, with the action ``reverted``, the
    refusal ``over_budget`` and their figures in ``errors``. Where the program has no float64 oracle it is
    rewritten unverified, and a note in the report says why.
    """
    vetoed: dict[int, _Veto] = {}
    precise = False
    while True:
        watch = _Watch(vetoed)
        made = program.copied()
        report, folded = run_pipeline(made, options, watch, precise=precise)
        unchanged = all(site.action in ("kept", "reverted") for site in report.sites)
        if unchanged and not folded and not report.centrings:
            return made, report, folded
        with outside_tracing():
            verdict = _measure(program, watch, inputs, report)
        if verdict.not_bitwise:
            return _untouched(program, report)
        if not verdict.guilty:
            report.errors = watch.errors
            return made, report, folded
        if unchanged:
            report.notes.append("weights were folded though no norm changed, and the outputs moved: undone")
            return _as_it_came(program, report)
        if watch.work is not None and watch.work.shifts_in_biases:
            precise = True
            continue
        vetoed |= _to_give_up(watch, verdict, len(vetoed))


def _untouched(program: Program, report: Report) -> tuple[Program, Report, list[Folded]]:
    """The program as it came, when not even the stages before the rules can be trusted with it."""
    message = "recognising the norms changed bits of the outputs, which it must not"
    for site in report.sites:
        site.revert(Refusal("recognition_not_bitwise", message, remedy="report this model"))
    return _as_it_came(program, report)


def _as_it_came(program: Program, report: Report) -> tuple[Program, Report, list[Folded]]:
    for site in report.sites:
        site.certificate = None
    report.folded = report.centrings = 0
    return program.copied(), report, []


@dataclass
class _Watch:
    """Looks at a run of the pipeline and keeps what is needed to run it before and after.

    ``errors`` are those of the outputs, by the inputs that they were measured on.
    ``left`` are the numbers of the sites that the rewritten program still has: a norm that was folded away
    has no value of its own, and is judged by all that come after it.
    """

    vetoed: dict[int, _Veto]
    work: Work | None = None
    before: Probe | None = None
    after: Probe | None = None
    folded: list[Tensor] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)

    def lifted(self, work: Work) -> None:
        self.work, self.before = work, Probe.of(work.program, list(work.sites))
        self.sites = list(work.sites.values())
        for index, (refusal, errors) in self.vetoed.items():
            self.sites[index].revert(refusal)
            self.sites[index].errors = dict(errors)

    def rewritten(self, work: Work, folded: Sequence[Folded]) -> None:
        values = {node: i.value for node, i in work.program.weights.items()}
        self.folded = [one.recipe.compute([values[s] for s in one.sources]) for one in folded]
        numbers = {id(site): index for index, site in enumerate(self.sites)}
        self.left = [numbers[id(site)] for site in work.sites.values()]
        self.after = Probe.of(work.program, list(work.sites))

    def group(self, index: int) -> set[int]:
        """The changed sites of the same stream."""
        assert self.work is not None
        nodes = zip(self.left, self.work.sites, strict=True)
        streams = {i: self.work.streams[node] for i, node in nodes if node in self.work.streams}
        alike = {i for i, stream in streams.items() if stream == streams.get(index)}
        return {i for i in alike if self.sites[i].action == "converted"}


@dataclass
class _Verdict:
    """Site numbers over budget in execution order (-1 for an output), and the worst ratio of each."""

    guilty: list[int] = field(default_factory=list)
    worst: dict[int, tuple[float, str]] = field(default_factory=dict)
    not_bitwise: bool = False

    def blame(self, index: int, ratio: float, inputs: str) -> None:
        if index not in self.worst:
            self.guilty.append(index)
        if ratio >= self.worst.get(index, (0.0, ""))[0]:
            self.worst[index] = (ratio, inputs)


def _measure(program: Program, watch: _Watch, inputs: Sequence[Any], report: Report) -> _Verdict:
    assert watch.before is not None
    verdict = _Verdict()
    try:
        wide = widen(watch.before.graph)
        _measure_on("captured", list(inputs), program, wide, watch, verdict)
        for name, given in _hostile(program, inputs):
            with suppress(VerificationError):  # the original says nothing about such inputs
                _measure_on(name, given, program, wide, watch, verdict)
    except VerificationError as error:
        watch.errors.clear()
        report.notes.append(f"the rewrite was not verified site by site: {error}")
    verdict.guilty.sort(key=lambda index: (index < 0, index))
    return verdict


def _hostile(program: Program, inputs: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """Hostile values for what the caller passes; the weights stay."""
    passed = [not i.is_weight for i in program.inputs]
    chosen = [value for value, is_passed in zip(inputs, passed, strict=True) if is_passed]
    found = []
    for name, replaced in hostile_inputs(chosen):
        fresh = iter(replaced)
        found.append((name, [next(fresh) if p else v for v, p in zip(inputs, passed, strict=True)]))
    return found


def _measure_on(
    name: str, inputs: list[Any], program: Program, wide: Any, watch: _Watch, verdict: _Verdict
) -> None:
    assert watch.before is not None
    assert watch.after is not None
    reference, disturbed = _reference(watch.before, inputs)
    if not _recognition_is_bitwise(program, inputs, reference):
        verdict.not_bitwise = True
        return
    oracle = run_wide(wide, inputs)
    try:
        candidate = watch.after.run([*inputs, *watch.folded])
    except Exception:
        verdict.blame(-1, math.inf, name)
        return
    first = watch.before.outputs
    compared = [*range(first), *(first + index for index in watch.left)]
    for position, c in zip(compared, candidate, strict=True):
        r, o = reference[position], oracle[position]
        assert isinstance(o, Tensor)
        if name != "captured" and not is_real_number(r.dtype):
            continue  # chosen by comparing what overflows or is a tie
        if r.dtype == torch.float64 and (name != "captured" or is_yardstick(disturbed[position], o)):
            r = disturbed[position]  # in float64 the oracle rounds as the original does
        index = max(position - first, -1)
        leaf = _judged(name, r, c, o)
        if leaf is None:
            verdict.blame(index, math.inf, name)
            continue
        if leaf.judged and index not in watch.vetoed:
            errors = watch.errors if index < 0 else watch.sites[index].errors
            errors[name] = max(errors.get(name, 0.0), min(leaf.error_ratio, sys.float_info.max))
        if not leaf.ok:
            verdict.blame(index, leaf.error_ratio, name)


def _judged(name: str, reference: Tensor, candidate: Tensor, oracle: Tensor) -> LeafError | None:
    """The verdict on a value; None where it has another shape or dtype, on inputs that are no hostile ones.

    Raises:
        VerificationError: when nothing can be said about it.
    """
    try:
        return judge_where_finite(name, reference, candidate, oracle)
    except NoYardstickError:
        raise
    except VerificationError:
        if name != "captured":
            raise
        return None


def _reference(before: Probe, inputs: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """What the original makes of inputs, and, where it computes in float64, of inputs one rounding off.

    Raises:
        VerificationError: when it does not take them.
    """
    try:
        found = before.run(inputs)
        if not any(value.dtype == torch.float64 for value in found):
            return found, found
        return found, before.run([one_rounding_off(value) for value in inputs])
    except Exception as error:
        raise VerificationError(f"the original does not take its inputs: {cause(error)}") from error


def _recognition_is_bitwise(program: Program, inputs: list[Any], lifted: Sequence[Tensor]) -> bool:
    """Whether the stages before the rules keep what they promise; ``lifted`` begins with the outputs."""
    expected = Probe.of(program, []).run(inputs)
    return all(map(same_bits, expected, lifted[: len(expected)]))


def _to_give_up(watch: _Watch, verdict: _Verdict, rounds: int) -> dict[int, _Veto]:
    """Which sites to leave alone next time: never none."""
    sites = watch.sites
    changed = [i for i, site in enumerate(sites) if site.action not in ("kept", "reverted")]
    blamed = [i for i in verdict.guilty if i in changed]
    innocent_norms = [i for i in verdict.guilty if i >= 0 and i not in changed]
    chosen = set(blamed if rounds >= _GENTLE_ROUNDS else blamed[:1])
    if innocent_norms and (not blamed or innocent_norms[0] < blamed[0]):
        chosen = watch.group(innocent_norms[0]) or chosen
    chosen = chosen or set(changed)
    culprit = verdict.guilty[0]
    figures = {i: verdict.worst[i if i in verdict.worst else culprit] for i in chosen}
    return {i: (_refusal(*figures[i]), sites[i].errors) for i in chosen}


def _refusal(ratio: float, inputs: str) -> Refusal:
    return Refusal(
        "over_budget",
        f"on {inputs} inputs the rewritten form was {ratio:.3g} times as far from float64 as the original, "
        f"and {BUDGET} is allowed",
        remedy="report this model, or accept that the norm stays",
    )
