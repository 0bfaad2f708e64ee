"""The same model several times: eager, compiled, and without its norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from normfuse.backends.frozen import frozen
from normfuse.backends.without_norms import WithoutNorms
from normfuse.benchmark.settings import BASELINE, FROZEN, NO_NORMS, ONNX
from normfuse.benchmark.subject import Subject

__all__ = ["contender"]

Program = Callable[..., Any]


def contender(name: str, subject: Subject) -> Program:
    """The model of ``subject`` as ``name`` runs it; compiled at its first call."""
    if name == "eager":
        return subject.model
    if name == ONNX:
        from normfuse.benchmark.onnx import onnx_session

        return onnx_session(subject)
    if name == FROZEN:
        return frozen(subject.model)
    backends: dict[str, Any] = {BASELINE: "inductor", "normfuse": "normfuse", NO_NORMS: WithoutNorms()}
    compiled: Program = torch.compile(subject.model, backend=backends[name])
    return compiled
