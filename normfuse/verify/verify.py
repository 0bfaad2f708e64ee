"""verify(f, g): whether g is as close to f computed in float64 as f itself is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from normfuse.arguments import bound_arguments
from normfuse.errors import InputError, VerificationError
from normfuse.verify.capture import capture_reference, program_in, runnable
from normfuse.verify.equivalence import Equivalence, LeafError
from normfuse.verify.gradients import oracle_run, parameter_gradients, trainable_parameters
from normfuse.verify.isolation import copied_inputs, preserved_rng, preserved_state
from normfuse.verify.leaves import named_leaves
from normfuse.verify.numerics import is_yardstick, judge_but_overflow, one_rounding_off
from normfuse.verify.oracle import run_wide
from normfuse.verify.programs import compare_programs
from normfuse.verify.state import State, judge_state
from normfuse.verify.widen import widen

__all__ = ["compare", "verify"]


def verify(
    reference: Any,
    candidate: Any,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    grads: bool = False,
) -> Equivalence:
    """Compare ``candidate`` with ``reference`` on one input, against ``reference`` computed in float64.

    Both are modules (compiled or not), callables, exported programs, or objects whose ``program`` is one.
    They run as they are, from the same random state, on copies of the inputs; afterwards their parameters,
    buffers, flags and torch's random state are as before. Per floating leaf of the output, in L2 norms,

        error_ratio = |candidate - oracle| / max(|reference - oracle|, one ulp of |oracle|)  <=  1.5

    decides; float64 leaves may differ by ``DOUBLE_BOUND`` instead, integers have to be equal. With ``grads``
    the gradients of a fixed random projection of the outputs with respect to every trainable parameter are
    leaves too, called ``grad:<name>``; parameters are matched by name. Weights and inputs that either of them
    wrote to have to agree to half of the digits of their dtype; they are called ``written:<name>``.

    Two programs (exported ones, or paths of ``.pt2`` files) and no inputs: they are compared on the stored
    inputs of the reference, on random ones and on hostile ones, and the result also has ``cases``.

    Raises ``VerificationError`` when outputs or parameters do not correspond, or the reference has no float64
    oracle; ``CaptureError`` when it cannot be traced; ``InputError`` for something that cannot be run.
    """
    given: object = args
    if isinstance(given, Tensor):
        raise InputError("args takes a tuple of inputs; write (x,) for one tensor")
    kwargs = kwargs or {}
    reference, candidate = program_in(reference), program_in(candidate)
    if not (args or kwargs or grads) and isinstance(reference, ExportedProgram):
        if not isinstance(candidate, ExportedProgram):
            raise InputError("without inputs, both reference and candidate have to be exported programs")
        return compare_programs(reference, candidate, compare)
    return compare(reference, candidate, args, kwargs, grads=grads)


def compare(
    reference: Any, candidate: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *,
    grads: bool = False, hostile: bool = False,
) -> Equivalence:  # fmt: skip
    """What :func:`verify` does on one input; on a ``hostile`` one ties may fall either way."""
    with torch.inference_mode(False), torch.set_grad_enabled(grads):
        original = _run(runnable(reference), args, kwargs, grads, "reference")
        rewritten = _run(runnable(candidate), args, kwargs, grads, "candidate")
        _require_same_structure(original, rewritten)
        capture = capture_reference(reference, args, kwargs)
        if grads:
            outputs, gradients = oracle_run(capture, list(original.gradients), original.dtypes)
        else:
            values = run_wide(widen(capture.graph), capture.inputs)
            outputs, gradients = dict(zip(capture.paths, values, strict=True)), {}  # type: ignore[arg-type]
    chosen = partial(judge_but_overflow, hostile=hostile)
    leaves = _judge_all("", original.tensors, rewritten.tensors, outputs, chosen)
    failed = {leaf.path for leaf in leaves if not leaf.ok and leaf.dtype == torch.float64}
    if failed:  # judged by how far one rounding of the inputs carries the reference
        disturbed = _run_disturbed(reference, args, kwargs).items()
        others = {p: value for p, value in disturbed if p in failed and is_yardstick(value, outputs[p])}
        again = _judge_all("", others, rewritten.tensors, outputs, chosen)
        leaves = list({leaf.path: leaf for leaf in (*leaves, *again)}.values())
    leaves += _judge_all("grad:", original.gradients, rewritten.gradients, gradients, chosen)
    return Equivalence.of([*leaves, *judge_state(original.written, rewritten.written)])


@dataclass(frozen=True)
class _Run:
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


def _run(
    program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], grads: bool, role: str
) -> _Run:
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
    return _Run(kept, gradients, written)


def _run_disturbed(reference: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """What the reference returns for inputs one rounding off: in float64 the oracle rounds as it does."""
    given, named = pytree.tree_map(one_rounding_off, (args, kwargs))
    try:
        with torch.inference_mode(False), torch.no_grad():
            return _run(runnable(reference), given, named, False, "reference").tensors
    except Exception:  # it may well not take them
        return {}


def _judge_all(
    prefix: str,
    reference: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    oracle: Mapping[str, Tensor],
    chosen: Callable[[str, Tensor, Tensor, Tensor], LeafError],
) -> list[LeafError]:
    for path in reference:
        if path not in oracle:
            raise VerificationError(f"{prefix}{path} was not returned again when the reference was traced.")
    return [chosen(prefix + path, reference[path], candidate[path], oracle[path]) for path in reference]


def _require_same_structure(reference: _Run, candidate: _Run) -> None:
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
