"""The same model several times: eager, compiled, and without its norms."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch

from normfuse.backends.frozen import frozen
from normfuse.backends.without_norms import WithoutNorms
from normfuse.benchmark.settings import BASELINE, FROZEN, NO_NORMS, NO_NORMS_FROZEN, ONNX
from normfuse.benchmark.subject import Subject

__all__ = ["contender"]

Program = Callable[..., Any]


def contender(name: str, subject: Subject) -> Program:
    """The model of ``subject`` as ``name`` runs it; compiled at its first call.

    Each is compiled through a function of its own: Dynamo would run what it has compiled for one with
    Inductor for the other one that freezes.
    """
    model = subject.model
    if name == "eager":
        return model
    if name == ONNX:
        from normfuse.benchmark.onnx import onnx_session

        return onnx_session(subject)
    if name == FROZEN:
        return frozen(own_function(model, name))
    backends: dict[str, Any] = {
        BASELINE: "inductor",
        "normfuse": "normfuse",
        NO_NORMS: WithoutNorms(),
        NO_NORMS_FROZEN: WithoutNorms(freezes=True),
    }
    compiled: Program = torch.compile(own_function(model, name), backend=backends[name])
    return compiled


def own_function(model: Program, name: str) -> Program:
    """A function with a code object of its own that calls ``model``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    code = call.__code__.replace(co_name=f"call_{name.replace(' ', '_').replace(',', '')}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)
