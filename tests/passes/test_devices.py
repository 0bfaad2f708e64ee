"""Weights that lie elsewhere than the values they are used with are refused, and only those."""

from __future__ import annotations

import pytest

from tests.passes.devices import CASES, HERE, rewritten


@pytest.mark.parametrize("f", CASES, ids=lambda f: f.__name__)
def test_weights_on_two_devices_are_refused(f):
    report, program = rewritten(f, CASES[f])
    assert [(s.action, s.refusal.code) for s in report.sites] == [("kept", "weight_device")]
    program.gm.graph.lint()


@pytest.mark.parametrize("f", CASES, ids=lambda f: f.__name__)
def test_on_one_device_all_of_them_are_changed(f):
    report, _ = rewritten(f, [HERE] * len(CASES[f]))
    assert [s.action for s in report.sites] != ["kept"]
