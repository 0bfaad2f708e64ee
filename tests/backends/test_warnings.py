"""A fallback's warning points at the line of the person who can do something about it."""

from __future__ import annotations

import warnings

import pytest
import torch

from normfuse.backends import compile as backend
from normfuse.warn import warn_user
from tests.backends.networks import example, prenorm


def test_the_warning_of_a_fallback_points_here(monkeypatch):
    def fail(*args):
        raise RuntimeError("on purpose")

    monkeypatch.setenv("NORMFUSE_STRICT", "0")
    monkeypatch.setattr(backend, "rewrite_graph", fail)
    compiled = torch.compile(prenorm(), backend="normfuse", options={"normfuse.inner": "eager"})
    with torch.no_grad(), pytest.warns(UserWarning, match="left this graph to Inductor.*on purpose") as seen:
        compiled(example())
    ours = [warning for warning in seen if "left this graph" in str(warning.message)]
    assert {warning.filename for warning in ours} == {__file__}


def test_warnings_of_one_line_are_shown_once():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            warn_user("the same")
    assert [(str(w.message), w.filename) for w in seen] == [("the same", __file__)]
