"""What compiling costs, counted in work done and not in seconds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Graph

import normfuse
from normfuse.backends import inner as inner_module
from tests.backends.networks import example, prenorm


def test_rewriting_generates_no_python_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor reads the graph; what nobody calls needs no code."""
    generated: list[Graph] = []
    python_code = Graph.python_code

    def counted(self: Graph, *args: Any, **kwargs: Any) -> Any:
        generated.append(self)
        return python_code(self, *args, **kwargs)

    def untouched(gm: Any, *_: Any) -> Callable[..., Any]:
        assert generated == []
        return copy.deepcopy(gm)  # type: ignore[no-any-return]

    def backend(gm: Any, inputs: Any) -> Any:
        generated.clear()
        return normfuse.normfuse_backend(gm, inputs)

    monkeypatch.setattr(Graph, "python_code", counted)
    monkeypatch.setattr(inner_module, "run_inner", untouched)
    model = prenorm()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(example()), model(example()))
    assert normfuse.last_report().after == {"rms_norm": 3}
    assert generated
