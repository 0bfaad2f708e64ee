"""The float64 value of every leaf that a program returns, by path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from normfuse.errors import VerificationError
from normfuse.verify.capture import Capture, capture_reference, runnable
from normfuse.verify.gradients import oracle_run, trainable_parameters
from normfuse.verify.leaves import tensor_leaves
from normfuse.verify.oracle import run_wide
from normfuse.verify.reach import rounded_once
from normfuse.verify.widen import widen

__all__ = ["CapturedOracle", "Oracle", "ProgramOracle", "oracle_of"]


class Oracle(Protocol):
    """Where exact values come from."""

    def values(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], dtypes: Mapping[str, torch.dtype],
        draw: int | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Leaves by path; with a ``draw`` those of inputs and weights that were rounded once more.

        ``dtypes`` are the model's dtypes of the same paths. Raises ``VerificationError`` when there are none.
        """


class CapturedOracle:
    """Of any callable: it is traced on the inputs at hand, since it may branch on them."""

    def __init__(self, reference: Any, grads: bool = False) -> None:
        self._reference, self._grads = reference, grads
        self._last: tuple[object, object, Capture] | None = None

    def values(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], dtypes: Mapping[str, torch.dtype],
        draw: int | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        capture = self._captured(args, kwargs)
        if draw is not None:
            capture = replace(capture, inputs=tuple(rounded_once(capture.inputs, draw)))
        if not self._grads:
            found = run_wide(widen(capture.graph), capture.inputs)
            return dict(zip(capture.paths, found, strict=True))  # type: ignore[arg-type]
        names = list(trainable_parameters(runnable(self._reference), "reference"))
        outputs, gradients = oracle_run(capture, names, dtypes)
        return outputs | {f"grad:{name}": value for name, value in gradients.items()}

    def _captured(self, args: object, kwargs: object) -> Capture:
        if self._last is None or self._last[0] is not args or self._last[1] is not kwargs:
            self._last = (args, kwargs, capture_reference(self._reference, args, kwargs))  # type: ignore[arg-type]
        return self._last[2]


class ProgramOracle:
    """Of an exported program: its own graph, widened once for all inputs."""

    def __init__(self, exported: ExportedProgram) -> None:
        signature, held = exported.graph_signature, {**exported.constants, **exported.state_dict}
        self._inputs, self._held = signature.input_specs, held
        self._wide = widen(exported.graph_module)
        self._returned = [spec.kind is OutputKind.USER_OUTPUT for spec in signature.output_specs]
        self._structure = exported.call_spec.out_spec

    def values(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], dtypes: Mapping[str, torch.dtype],
        draw: int | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        passed = iter(pytree.tree_leaves((args, kwargs)))
        given = [
            next(passed, None) if spec.kind is InputKind.USER_INPUT else self._held[spec.target]
            for spec in self._inputs
        ]
        found = run_wide(self._wide, given if draw is None else rounded_once(given, draw))
        returned = [v for v, is_output in zip(found, self._returned, strict=True) if is_output]
        return tensor_leaves(pytree.tree_unflatten(returned, self._structure))


def oracle_of(exported: ExportedProgram) -> Oracle:
    """The cheapest oracle that the program allows."""
    kinds = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR, InputKind.USER_INPUT}
    if any(spec.kind not in kinds for spec in exported.graph_signature.input_specs):
        return CapturedOracle(exported)
    try:
        return ProgramOracle(exported)
    except VerificationError:
        return CapturedOracle(exported)
