"""One execution of a program on copies of its inputs, and whether two gave the same kind of things."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normfuse.arguments import bound_arguments
from normfuse.errors import VerificationError
from normfuse.verify.gradients import parameter_gradients, trainable_parameters
from normfuse.verify.isolation import copied_inputs, preserved_rng, preserved_state
from normfuse.verify.leaves import named_leaves
from normfuse.verify.state import State

__all__ = ["Run", "require_same_structure", "run_program"]


@dataclass(frozen=True)
class Run:
    """One execution: every leaf by path (tensors detached and copied), and gradients by parameter name."""

    leaves: dict[str, object]
    gradients: dict[str, Tensor]
    written: dict[str, Tensor]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {path: leaf for path, leaf in self.leaves.items() if isinstance(leaf, Tensor)}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {path: tensor.dtype for path, tensor in self.tensors.items()}


def run_program(
    program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], grads: bool, role: str
) -> Run:
    """What ``program`` returns and leaves behind; its state and the random state are as before afterwards."""
    bound_arguments(program, args, kwargs, f"the {role}")
    args, kwargs = copied_inputs(args, kwargs)
    parameters = trainable_parameters(program, role) if grads else {}
    with preserved_rng(), preserved_state(program) as before:
        state = State(program, args, kwargs, before)
        leaves = named_leaves(program(*args, **kwargs))
        # A buffer or a CUDA graph's memory may be among the outputs: copy before anything else runs.
        kept = {p: v.detach().clone() if isinstance(v, Tensor) else v for p, v in leaves.items()}
        tensors = {p: v for p, v in leaves.items() if isinstance(v, Tensor)}
        dtypes = {p: v.dtype for p, v in tensors.items()}
        gradients = parameter_gradients(tensors, parameters, dtypes) if grads else {}
        written = state.written()
    return Run(kept, gradients, written)


def require_same_structure(reference: Run, candidate: Run) -> None:
    """Raises ``VerificationError`` where leaves, parameters or plain values do not correspond."""
    _require_same_names(reference.leaves, candidate.leaves, "output leaf")
    _require_same_names(reference.gradients, candidate.gradients, "trainable parameter")
    for path, expected in reference.leaves.items():
        found = candidate.leaves[path]
        if isinstance(expected, Tensor) and isinstance(found, Tensor):
            continue
        if type(expected) is not type(found) or not _are_equal(expected, found):
            raise VerificationError(
                f"{path} is {_brief(expected)} in the reference, {_brief(found)} in the candidate."
            )


def _are_equal(expected: object, found: object) -> bool:
    """A Python float was rounded like a tensor and has no oracle: 2**-7 is one unit of bfloat16."""
    if isinstance(expected, float) and isinstance(found, float):
        both_nan = math.isnan(expected) and math.isnan(found)
        return both_nan or math.isclose(expected, found, rel_tol=2.0**-7, abs_tol=1e-6)
    return bool(expected == found)


def _require_same_names(reference: Mapping[str, object], candidate: Mapping[str, object], what: str) -> None:
    for name in reference:
        if name not in candidate:
            raise VerificationError(f"The candidate has no {what} {name}, which the reference has.")
    for name in candidate:
        if name not in reference:
            raise VerificationError(f"The candidate has the {what} {name}, which the reference has not.")


def _brief(value: object) -> str:
    return "a tensor" if isinstance(value, Tensor) else repr(value)
