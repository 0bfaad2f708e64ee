"""In the place of Inductor: what runs a graph as it is, with copies of the constants, which grow stale."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from torch.fx import GraphModule

from normfuse.backends import inner as backend
from normfuse.freezing import decide, steadiness

__all__ = ["compilations", "hold"]

compilations: list[Mapping[str, Any]] = []
"""Inductor's settings of each graph that was compiled."""


def hold(monkeypatch: pytest.MonkeyPatch, calls_per_change: int = 0) -> None:
    """Compile in milliseconds; weights may change once in so many calls, and none has changed yet."""
    compilations.clear()
    monkeypatch.setattr(backend, "run_inner", _held)
    monkeypatch.setattr(decide, "_is_packed", lambda weight: True)  # in float64, too: nothing is packed here
    monkeypatch.setattr(steadiness, "CALLS_PER_CHANGE", calls_per_change)
    monkeypatch.setattr(steadiness, "_histories", {})


def _held(gm: GraphModule, inputs: Sequence[Any], options: Any, settings: Mapping[str, Any]) -> Any:
    compilations.append(settings)
    return copy.deepcopy(gm)
