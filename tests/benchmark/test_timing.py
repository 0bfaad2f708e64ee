"""The arithmetic of interleaved timing, with a clock made of numbers."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from itertools import pairwise

import pytest

from normfuse.benchmark.timing import (
    AGAIN,
    Rounds,
    Schedule,
    _orders,
    median_interval,
    merge,
    ratios,
    run_rounds,
)

EXACTLY = Schedule(seconds=0.0, min_rounds=8, max_rounds=8, warm_up=1, sample=0.0)


class Machine:
    """A clock, and work that moves it: each call costs its price times the load of the moment."""

    def __init__(self, load=lambda now: 1.0):
        self.now, self.load, self.calls = 0.0, load, []

    def clock(self):
        return self.now

    def work(self, name, price):
        def call():
            self.calls.append(name)
            self.now += price * self.load(self.now)

        return call


def test_ratio_of_steady_work_is_the_ratio_of_the_prices():
    machine = Machine()
    contenders = {"slow": machine.work("slow", 3.0), "base": machine.work("base", 2.0)}
    found = ratios(run_rounds(contenders, "base", EXACTLY, machine.clock))
    assert set(found) == {"slow", "base" + AGAIN}
    assert (found["slow"].median, found["slow"].low, found["slow"].high) == (1.5, 1.5, 1.5)
    assert found["base" + AGAIN].median == 1.0
    assert found["slow"].seconds == 3.0


def test_a_machine_that_slows_down_for_good_does_not_move_the_paired_ratio():
    def load(now):
        return 1.0 if now < 40.0 else 5.0

    machine = Machine(load)
    schedule = Schedule(seconds=0.0, min_rounds=40, max_rounds=40, warm_up=1, sample=0.0)
    contenders = {"half": machine.work("half", 0.5), "base": machine.work("base", 1.0)}
    found = ratios(run_rounds(contenders, "base", schedule, machine.clock))
    assert found["half"].median == pytest.approx(0.5, rel=1e-12)
    assert found["half"].seconds == 2.5


def test_every_round_holds_everyone_once_after_an_uncounted_call_of_its_own():
    machine = Machine()
    contenders = {name: machine.work(name, 1.0) for name in ("a", "b")}
    run_rounds(contenders, "a", EXACTLY, machine.clock)
    measured = machine.calls[3:]  # three warm-up calls: a, b, and a again
    by_round = [measured[i : i + 6] for i in range(0, len(measured), 6)]
    assert len(by_round) == 8
    for calls in by_round:
        assert calls[::2] == calls[1::2]
        assert sorted(calls[::2]) == ["a", "a", "b"]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_everyone_comes_first_and_after_everyone_else_equally_often(n):
    names = [str(i) for i in range(n)]
    orders = list(_orders(names, 2 * n))
    assert all(sorted(order) == names for order in orders)
    assert Counter(order[0] for order in orders) == dict.fromkeys(names, 2)
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert len(follows) == n * (n - 1)
    assert len(set(follows.values())) == 1


def test_a_cache_left_cold_by_another_contender_is_not_counted():
    machine = Machine()
    last = []

    def call(name):
        def run():
            machine.now += 1.0 if last[-1:] == [name] else 2.0
            last.append(name)

        return run

    found = ratios(run_rounds({n: call(n) for n in ("a", "b")}, "a", EXACTLY, machine.clock))
    assert (found["b"].low, found["b"].high) == (1.0, 1.0)


def test_quick_work_is_repeated_until_a_sample_is_long_enough():
    machine = Machine()
    schedule = Schedule(seconds=0.0, min_rounds=1, max_rounds=1, warm_up=2, sample=1.0)
    contenders = {"base": machine.work("base", 0.25)}
    rounds = run_rounds(contenders, "base", schedule, machine.clock)
    assert rounds.seconds["base"] == [0.25]
    assert len(machine.calls) == 2 * 2 + 2 * (1 + 4)


@pytest.mark.parametrize(
    ("schedule", "rounds"),
    [
        (Schedule(seconds=10.0, min_rounds=2, max_rounds=100, warm_up=1), 3),
        (Schedule(seconds=10.0, min_rounds=7, max_rounds=100, warm_up=1), 7),
        (Schedule(seconds=10.0, min_rounds=2, max_rounds=2, warm_up=1), 2),
    ],
)
def test_time_and_bounds_end_the_measurement(schedule, rounds):
    machine = Machine()
    found = run_rounds({"base": machine.work("base", 1.0)}, "base", schedule, machine.clock)
    assert [len(own) for own in found.seconds.values()] == [rounds, rounds]


def test_unknown_baseline_is_named():
    with pytest.raises(KeyError, match=r"'eager' is none of the contenders: a, b"):
        run_rounds({"a": lambda: None, "b": lambda: None}, "eager")


@pytest.mark.parametrize("n", [6, 7, 12, 25, 60, 201])
def test_interval_is_the_narrowest_of_its_kind_with_95_percent(n):
    low, high = median_interval(list(range(n)))
    assert low + high == n - 1

    def missed(k):
        return 2 * sum(math.comb(n, j) for j in range(k)) / 2**n

    k = int(low) + 1
    assert missed(k) <= 0.05 < missed(k + 1)


def test_interval_of_few_values_are_the_extremes():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([4.0]) == (4.0, 4.0)


def test_interval_covers_the_median_as_often_as_it_says():
    rng = random.Random(0)
    trials = 2000
    covered = 0
    for _ in range(trials):
        low, high = median_interval([rng.expovariate(math.log(2)) for _ in range(30)])
        covered += low <= 1.0 <= high
    # n = 30 gives 95.7 %; four standard deviations of 2000 draws are 1.8 %
    assert covered / trials >= 0.957 - 4 * math.sqrt(0.957 * 0.043 / trials)


def _process(half):
    return Rounds("base", {"base": [1.0] * 50, "other": [half] * 50})


def test_merged_processes_count_once_each():
    found = merge([_process(0.8), _process(0.9), _process(1.3)])["other"]
    assert (found.median, found.low, found.high) == (0.9, 0.8, 1.3)
    assert found.spread == pytest.approx(0.25)


def test_one_process_keeps_the_interval_of_its_rounds():
    only = _process(0.8)
    assert merge([only]) == ratios(only)


def test_rounds_survive_json_and_come_back_from_fresh_processes():
    rounds = Rounds("base", {"base": [1.0, 2.0], "other": [0.1, 1 / 3]})
    assert Rounds.from_json(rounds.to_json()) == rounds
    assert json.loads(rounds.to_json())["baseline"] == "base"
