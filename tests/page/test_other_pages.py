"""The pages of a verification and of a measurement."""

from __future__ import annotations

import math

import pytest
import torch

from normfuse.benchmark.measure import Cost
from normfuse.benchmark.result import BatchResult, BenchResult
from normfuse.benchmark.settings import Settings
from normfuse.benchmark.timing import Rounds
from normfuse.verify.equivalence import Equivalence, LeafError
from normfuse.verify.programs import CaseOutcome, ProgramEquivalence
from tests.page.reports import HOSTILE
from tests.page.structure import checked


def leaf(path="out", ratio=1.02, ok=True, judged=True, reason=""):
    return LeafError(path, torch.float32, (2, 3), 1e-6, 1e-5, ratio, judged, ok, 1.5, reason)


def page_of(result, tmp_path, **names):
    return checked(result.to_html(tmp_path / "page.html", **names).read_text(encoding="utf-8"))


def test_a_verification_shows_each_input_and_its_worst_output(tmp_path):
    cases = [
        CaseOutcome("stored", "stored", True, Equivalence.of([leaf(), leaf("b", 0.9)])),
        CaseOutcome("hostile", "mean 1000", True, None, "the reference does not take it"),
    ]
    page = page_of(ProgramEquivalence.over(cases), tmp_path, reference="a.pt2", candidate="b.pt2")
    for text in ("b.pt2 against a.pt2", "mean 1000", "the reference does not take it", "stored: b"):
        assert text in page.text
    assert "Equivalent: at most 1.02 (1.5 allowed) times" in page.text


@pytest.mark.parametrize(
    ("leaves", "sentence"),
    [
        ([leaf("y", 7.0, ok=False, reason="far off")], "NOT equivalent: y has error ratio 7"),
        ([leaf("y", math.inf, ok=False)], "NOT equivalent: y has error ratio inf"),
        ([leaf("y", judged=False, reason="nan")], "Could not be judged: the original is no yardstick for y"),
        ([], "Could not be judged"),
    ],
)
def test_a_verdict_that_is_not_good_says_so(leaves, sentence, tmp_path):
    page = page_of(Equivalence.of(leaves), tmp_path)
    assert sentence in page.text or not leaves


def test_names_of_outputs_are_text(tmp_path):
    result = ProgramEquivalence.over(
        [CaseOutcome(n, n, True, Equivalence.of([leaf(n, reason=n)]), n) for n in HOSTILE]
    )
    assert HOSTILE[0] in page_of(result, tmp_path, reference=HOSTILE[0], candidate=HOSTILE[1]).text


def measured(source="package.module:factory", batches=(1, 8)):
    seconds = {
        "eager": [2.0] * 9,
        "inductor": [1.0] * 9,
        "inductor (again)": [1.01] * 9,
        "normfuse": [0.8] * 9,
    }
    costs = {"inductor": [Cost(30.0, 2**30)], "normfuse": [Cost(35.0, None)]}
    found = tuple(BatchResult.of(size, [Rounds("inductor", seconds)], costs) for size in batches)
    settings = Settings(source=source, contenders=("eager", "inductor", "normfuse"))
    machine = {"processor": source, "cores": 2, "packages": {"torch": "2.13"}}
    return BenchResult(settings, 1, machine, found, "normfuse bench ...")


def test_a_measurement_shows_every_contender_at_every_batch(tmp_path):
    page = page_of(measured(), tmp_path)
    assert (
        "Time under normfuse over Inductor's: 0.800 at batch 1 (faster), 0.800 at batch 8 (faster)."
        in page.text
    )
    for text in ("Batch 1", "Batch 8", "eager", "2.000 slower", "1024", "normfuse bench ...", "torch 2.13"):
        assert text in page.text
    assert "faster" in str(measured())


def test_names_of_models_are_text(tmp_path):
    assert HOSTILE[0] in page_of(measured(HOSTILE[0], (None,)), tmp_path).text
