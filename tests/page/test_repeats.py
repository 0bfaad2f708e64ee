"""Runs of equal layers."""

from __future__ import annotations

import pytest

from normfuse.page.repeats import runs


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("", []),
        ("abc", [(0, 1, 1), (1, 1, 1), (2, 1, 1)]),
        ("eabababz", [(0, 1, 1), (1, 2, 3), (7, 1, 1)]),
        ("aaaa", [(0, 1, 4)]),
        ("abcabx", [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1), (5, 1, 1)]),
        ("ababcdcd", [(0, 2, 2), (4, 2, 2)]),
        ("aabaab", [(0, 3, 2)]),
    ],
)
def test_runs_cover_the_sequence(keys, expected):
    assert runs(keys) == expected
    assert "".join(keys[s : s + length] * turns for s, length, turns in runs(keys)) == keys
