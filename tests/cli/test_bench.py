"""The compile-time benchmark's arithmetic, on recorded runs."""

from __future__ import annotations

import pytest

from bench import compile_time
from bench.compile_time import targets


def runs(own=1.0):
    def run(total, own=None):
        return [{"total": total, "cpu": total} | ({} if own is None else {"own": own, "own_cpu": own})]

    return {
        (12, "inductor", "cold"): run(10.0),
        (12, "inductor", "warm"): run(4.0),
        (12, "normfuse", "cold"): run(10.0, own) + run(12.0, own) + run(30.0, own),
        (12, "normfuse", "warm"): run(5.0, 0.1),
        (48, "normfuse", "cold"): run(60.0, own and 4 * own),
        (12, "normfuse", "alone"): run(2.0, own),
        (96, "normfuse", "alone"): run(20.0, own and 10 * own),
    }


def test_figures_are_ratios_of_medians_beside_their_limits():
    found = {t.name: t for t in targets(runs(), (12, 48), "normfuse")}
    assert found["own share of a cold start, 12 layers"].value == pytest.approx(1 / 12)
    assert found["warm start over Inductor's"].value == 1.25
    assert found["own part, 48 over 12 layers"].value == 4.0
    assert found["own part, 96 over 12 narrow layers"].value == 10.0
    assert [t.met for t in found.values()] == [True, True, False, True, False]


def test_figures_without_normfuses_own_seconds_are_left_out():
    names = [t.name for t in targets(runs(own=None), (12, 48), "normfuse")]
    assert names == ["warm start over Inductor's", "total, 48 over 12 layers"]


def test_warm_starts_follow_the_cold_one_in_the_same_cache(monkeypatch):
    seen = []

    def in_fresh_process(layers, backend, cache, *more):
        if not more:
            seen.append((layers, backend, cache))
        return {"total": 1.0}

    monkeypatch.setattr(compile_time, "_in_fresh_process", in_fresh_process)
    measured = compile_time.measure((1, 2), "normfuse", repeats=2)
    assert {key: len(values) for key, values in measured.items()} == {
        (layers, backend, start): 2
        for layers in (1, 2)
        for backend in ("inductor", "normfuse")
        for start in ("cold", "warm")
    } | {(layers, "normfuse", "alone"): 2 for layers in (12, 96)}
    pairs = [seen[i : i + 2] for i in range(0, len(seen), 2)]
    assert all(cold == warm for cold, warm in pairs)
    assert len({cold[2] for cold, _ in pairs}) == len(pairs) == 8
