"""Rewriting a model or an exported program without compiling it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from normfuse.capture.exported import export_model, input_values, program_of, with_folded_weights
from normfuse.errors import InputError, VerificationError
from normfuse.folding import Folded
from normfuse.ir.program import Program
from normfuse.options import Options
from normfuse.passes.pipeline import check_expectation, run_pipeline
from normfuse.report import Report

__all__ = ["Rewritten", "rewrite"]


@dataclass(frozen=True)
class Rewritten:
    """A rewritten program of ATen operators: it runs, saves and loads without normfuse.

    Attributes:
        program: the exported program, with folded weights in its state dict.
        report: what was found and what became of it.
    """

    program: ExportedProgram
    report: Report

    def module(self) -> torch.nn.Module:
        """The program as a module with the signature of the original."""
        return self.program.module()

    def save(self, path: str | Path) -> Path:
        """Write a ``.pt2`` file: to a temporary name first, then moved into place.

        Raises:
            InputError: when the folder does not exist.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise InputError(f"cannot write {target}: the folder {target.parent} does not exist")
        unfinished = target.with_name(f".{target.stem}.part.pt2")
        try:
            torch.export.save(self.program, unfinished)
            return unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)


def rewrite(
    model_or_exported_program: torch.nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str = "rms_norm",
    dynamic_shapes: Any = None,
    **options: Any,
) -> Rewritten:
    """The same function with every norm in its cheapest proven form; the input stays untouched.

    Args:
        model_or_exported_program: a module in evaluation mode, or the result of ``torch.export``.
        args, kwargs: example inputs, for a module.
        target: ``"rms_norm"``, or ``"layer_norm"`` to recognise only.
        dynamic_shapes: as in ``torch.export.export``, for a module.
        options: those of ``torch.compile`` without their prefix, e.g. ``expect={"rms_norm": 25}``;
            ``verify="sites"``, the default here, runs every norm before and after, on hostile inputs too,
            and reverts those over the error budget; ``"output"`` compares the whole once and raises.

    Raises:
        InputError: for a model that is compiled already or in training mode.
        CaptureError: when the model cannot be exported.
        OptionError: for an unknown option, target or rule.
        ExpectationError: when ``expect`` is not met.
        VerificationError: when ``verify="output"`` finds a difference beyond the error budget.
    """
    started = time.perf_counter()
    checked = Options.checked({"target": target, "verify": "sites", **options}, prefix="")
    exported = _exported(model_or_exported_program, args, kwargs, dynamic_shapes)
    program, report, folded = _rewritten(exported, checked)
    check_expectation(report, checked)
    result = Rewritten(with_folded_weights(exported, program, folded), report)
    report.seconds = time.perf_counter() - started
    if checked.verify == "output":
        _verify(exported, result)
    return result


def _rewritten(exported: ExportedProgram, options: Options) -> tuple[Program, Report, list[Folded]]:
    """The pipeline, verified site by site where that was asked for and inputs are at hand."""
    program = program_of(exported)
    if options.verify != "sites":
        return program, *run_pipeline(program, options)
    from normfuse.verify.certificates import complete_certificates
    from normfuse.verify.sites import rewrite_verified

    inputs = input_values(exported, program)
    if inputs is None:
        report, folded = run_pipeline(program, options)
        report.notes.append("not verified: the exported program holds no example inputs")
    else:
        program, report, folded = rewrite_verified(program, options, inputs)
    complete_certificates(report, program, folded)
    return program, report, folded


def _exported(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> ExportedProgram:
    if isinstance(model, ExportedProgram):
        return model
    check_module(model)
    given: object = args
    if isinstance(given, torch.Tensor):
        raise InputError("args takes a tuple of example inputs; write (x,) for one tensor")
    if model.training:
        raise InputError(f"{type(model).__name__} is in training mode; call .eval() on it before rewriting")
    return export_model(model, args, kwargs, dynamic_shapes)


def check_module(model: Any) -> None:
    """Refuse what is no module, and a module that is compiled already.

    Raises:
        InputError: saying which, and what to pass instead.
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"expected a torch.nn.Module or an ExportedProgram, got {type(model).__name__}")
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise InputError("the model is compiled already; pass the module that was given to torch.compile")


def _verify(exported: ExportedProgram, result: Rewritten) -> None:
    from normfuse.verify import verify

    if exported.example_inputs is None:
        raise VerificationError("verify='output' needs example inputs, and the exported program holds none")
    args, kwargs = exported.example_inputs
    found = verify(exported, result, args, kwargs)
    if not found.ok:
        raise VerificationError(
            f"the rewritten program differs from the original: error ratio {found.error_ratio:.3g}"
        )
