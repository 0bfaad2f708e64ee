"""``verify="sites"``: run every norm before and after, and undo the rewrites that lose precision.

    rewrite -> run the original, the rewritten program and the float64 oracle side by side
            -> rewrite into the most exact forms that there are
            -> forbid the last rule that changed each site over budget
            -> rewrite again, until no site is over budget

Each program returns the values of its norms beside its outputs, also those that weights before them write
now, so the first value that is over budget names the site to blame. Where none does, the guilty one is found
by bisection. A site that is still over budget when its own norm was left alone has weights that others
changed; then its whole stream stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normfuse.errors import VerificationError
from normfuse.folding import Folded
from normfuse.ir.program import Program
from normfuse.lowering.choose import LOWER
from normfuse.options import Options
from normfuse.passes.catalogue import RULES
from normfuse.passes.pipeline import run_pipeline
from normfuse.report import Refusal, Report
from normfuse.torch_compat import outside_tracing
from normfuse.verify.approximation import approximated
from normfuse.verify.blame import GENTLE_ROUNDS, first_that_fails, guilty_sites
from normfuse.verify.input_sets import CAPTURED, InputSet, sets_of_graph
from normfuse.verify.measure import Fault, Verdict, measure_on
from normfuse.verify.numerics import same_bits
from normfuse.verify.original import Original
from normfuse.verify.probe import Probe
from normfuse.verify.watch import Pair, Veto, Watch

__all__ = ["Progress", "rewrite_verified"]

Progress = Callable[[str], None]

_Result = tuple[Program, Report, list[Folded]]


def rewrite_verified(
    program: Program,
    options: Options,
    inputs: Sequence[Any],
    sets: Sequence[InputSet] | None = None,
    progress: Progress = lambda text: None,
) -> _Result:
    """Rewrite a copy of ``program``, verified site by site on ``inputs`` and on hostile ones like them.

    ``inputs`` are real values for all placeholders, in order; they and the random state stay as they are.
    ``sets`` are the inputs to run it on instead, and ``progress`` is told what is run next. Returns the
    rewritten copy. A site over budget loses its rewrites, the last one first, until it is within; its
    ``refusals`` have an ``over_budget`` for each of these rules. One that lost all of them stays as it was,
    with the action ``reverted``, that refusal, and its figures in ``errors``. Where the program has no
    float64 oracle it is rewritten unverified, and a note in the report says why.
    """
    chosen = sets_of_graph(program, inputs, options.verify == "thorough") if sets is None else list(sets)
    first = approximated(program, options)
    if first is None:
        return _Rewriting(program, options, chosen, progress).run()
    try:
        with outside_tracing():
            first.check(chosen, progress)
    except VerificationError as error:
        found = _Rewriting(program, first.exact, chosen, progress).run()
        found[1].notes.append(f"approximate rules were left out: {error}")
        return found
    made, report, folded = _Rewriting(first.program, first.exact, chosen, progress).run()
    first.told_in(report)
    return made, report, folded


@dataclass(frozen=True)
class _Attempt:
    """One run of the pipeline, and who watched it."""

    program: Program
    report: Report
    folded: list[Folded]
    watch: Watch

    @property
    def result(self) -> _Result:
        return self.program, self.report, self.folded

    @property
    def is_unchanged(self) -> bool:
        return not self.watch.changed


@dataclass
class _Rewriting:
    """Tries one rewrite after another; ``original`` is run once on each set of inputs."""

    program: Program
    options: Options
    sets: list[InputSet]
    progress: Progress
    precise: bool = False
    original: Original | None = None
    vetoed: dict[Pair, Veto] = field(default_factory=dict)

    def run(self) -> _Result:
        while True:
            made = self._attempt(self.vetoed)
            if made.watch.disregarded:
                return self._untouched(made, _DISREGARDED)
            if made.is_unchanged and not made.folded and not made.report.centrings:
                return made.result
            with outside_tracing():
                done = self._judged(made)
            if done is not None:
                return done

    def _attempt(self, vetoed: Mapping[Pair, Veto]) -> _Attempt:
        watch, made = Watch(vetoed), self.program.copied()
        report, folded = run_pipeline(made, self.options, watch, precise=self.precise)
        return _Attempt(made, report, folded, watch)

    def _judged(self, made: _Attempt) -> _Result | None:
        """What to return; None when there is something to try again."""
        report, watch = made.report, made.watch
        try:
            if not self._recognition_is_bitwise(watch):
                return self._untouched(made, _NOT_BITWISE)
            verdict = self._measured(watch, self.sets)
        except VerificationError as error:
            report.notes.append(f"the rewrite was not verified site by site: {error}")
            return made.result
        if not verdict.faults:
            report.errors = watch.errors
            report.notes += _unjudged(verdict)
            return made.result
        if made.is_unchanged:
            report.notes.append("weights were folded though no norm changed, and the outputs moved: undone")
            return self._as_it_came(report)
        if watch.work is not None and watch.work.shifts_in_biases and not self.precise:
            self.precise = True
        else:
            self._give_up(watch, verdict)
        return None

    def _recognition_is_bitwise(self, watch: Watch) -> bool:
        """Whether the stages before the rules keep what they promise; looked at once.

        Raises:
            VerificationError: when the program has no float64 oracle, or does not take its own inputs.
        """
        if self.original is not None:
            return True
        assert watch.before is not None
        original, captured = Original(watch.before), self.sets[0]
        self.progress(f"the original, on {captured.name} inputs")
        lifted = original.on(captured).reference
        expected = Probe.of(self.program, []).run(captured.values)
        self.original = original
        return all(map(same_bits, expected, lifted[: len(expected)]))

    def _measured(self, watch: Watch, sets: Sequence[InputSet]) -> Verdict:
        """Raises ``VerificationError`` when the original says nothing about its own inputs."""
        assert self.original is not None
        verdict = Verdict()
        for given in sets:
            self.progress(f"the norms, on {given.name} inputs")
            try:
                measure_on(given, self.original, watch, verdict, self.progress)
            except VerificationError:
                if given.name == CAPTURED:
                    raise  # of other inputs it just says nothing
        return verdict

    def _give_up(self, watch: Watch, verdict: Verdict) -> None:
        """Keep some rules from some sites next time; what is forbidden grows with every call."""
        gentle = len(self.vetoed) < GENTLE_ROUNDS
        chosen = {watch.last(index) for index in guilty_sites(watch, verdict, gentle)}
        if not chosen:
            found = [self._found_by_trial(watch, verdict)] if gentle else map(watch.last, watch.changed)
            chosen = set(found)
        culprit = verdict.faults[verdict.guilty[0]]
        for index, rule in chosen:
            refusal = _refusal(verdict.faults.get(index, culprit))
            self.vetoed[index, rule] = (refusal, watch.sites[index].errors)

    def _found_by_trial(self, watch: Watch, verdict: Verdict) -> Pair:
        names = [*(rule.name for rule in RULES), LOWER]
        every = [(index, name) for index in range(len(watch.sites)) for name in names]

        def fails(allowed: Sequence[Pair]) -> bool:
            others = {pair: (_TRIED, dict[str, float]()) for pair in every if pair not in allowed}
            tried = self._attempt(self.vetoed | others).watch
            return bool(self._measured(tried, verdict.sets).faults)

        return first_that_fails(watch.pairs, fails)

    def _untouched(self, made: _Attempt, refusal: Refusal) -> _Result:
        """The program as it came, where what was made of it cannot be trusted."""
        for index, site in enumerate(made.watch.sites):
            site.revert(next((veto for (i, _), (veto, _) in self.vetoed.items() if i == index), refusal))
        return self._as_it_came(made.report)

    def _as_it_came(self, report: Report) -> _Result:
        for site in report.sites:
            site.rewrites.clear()
        report.folded = report.centrings = report.copied_bytes = 0
        return self.program.copied(), report, []


_NOT_BITWISE = Refusal(
    "recognition_not_bitwise",
    "recognising the norms changed bits of the outputs, which it must not",
    remedy="report this model",
)
_DISREGARDED = Refusal(
    "over_budget",
    "a norm that verification had given up was changed again, so nothing of the rewrite is used",
    remedy="report this model",
)
_TRIED = Refusal("over_budget", "left alone for a trial")


def _unjudged(verdict: Verdict) -> list[str]:
    return [
        f"output {place} could not be judged on any inputs: {reason}"
        for place, reason in sorted(verdict.unjudged.items())
    ]


def _refusal(fault: Fault) -> Refusal:
    return Refusal("over_budget", str(fault), remedy="report this model, or accept that the norm stays")
