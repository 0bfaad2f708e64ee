"""Rewriting a model or an exported program without compiling it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from normfuse.arguments import require_values
from normfuse.capture.exported import (
    export_model,
    input_values,
    preserved_calls,
    program_of,
    with_folded_weights,
)
from normfuse.capture.weight_map import weight_map
from normfuse.errors import InputError, VerificationError, cause
from normfuse.files import is_program_file, json_text, replacing
from normfuse.folding import Folded
from normfuse.folding.weight_map import WeightMap
from normfuse.ir.program import Program
from normfuse.options import Options
from normfuse.passes.catalogue import check_rules
from normfuse.passes.expectation import check_expectation
from normfuse.passes.observer import Observer
from normfuse.passes.pipeline import run_pipeline
from normfuse.passes.rotate import give_rotation
from normfuse.pt2 import load_program, save_program
from normfuse.report import Report
from normfuse.report_table import headline

if TYPE_CHECKING:
    from normfuse.verify import Equivalence

__all__ = ["Rewritten", "as_program", "explain_program", "rewrite"]


@dataclass(frozen=True, repr=False)
class Rewritten:
    """A rewritten program of ATen operators: it loads and runs without normfuse. It prints as its report.

    Attributes:
        program: the exported program, with folded weights in its state dict.
        report: what was found and what became of it.
        equivalence: how it compares with the original, when ``verify`` was asked for.
    """

    program: ExportedProgram
    report: Report
    _changes: WeightMap | InputError
    equivalence: Equivalence | None = None

    def __str__(self) -> str:
        return str(self.report)

    def __repr__(self) -> str:
        return f"<Rewritten: {headline(self.report).removeprefix('normfuse: ')}>"

    def module(self) -> torch.nn.Module:
        """The program as a module with the signature of the original."""
        return self.program.module()

    @property
    def unmapped(self) -> str:
        """Why there is no ``weight_map``; empty when there is one."""
        return str(self._changes) if isinstance(self._changes, InputError) else ""

    @property
    def weight_map(self) -> WeightMap:
        """Which tensors changed and how, by original name; ``weight_map.fold`` does it to another checkpoint.

        Raises:
            InputError: when a weight is computed by an operator that is not PyTorch's own.
        """
        if isinstance(self._changes, InputError):
            raise self._changes
        return self._changes

    def save(self, path: str | Path, map_path: str | Path | None = None) -> Path:
        """Write a ``.pt2`` file, and the weight map as JSON when ``map_path`` is given.

        Each is written to a temporary place first, then moved to its own.

        Raises:
            InputError: when a folder does not exist or a file cannot be written.
        """
        if map_path is None:
            return save_program(self.program, path)
        changes = self.weight_map
        with replacing(map_path) as unfinished:
            unfinished.write_text(json_text(changes.to_dict()), encoding="utf-8")
            return save_program(self.program, path)

    def to_onnx(self, path: str | Path, *, opset_version: int = 23, check: bool = True) -> Path:
        """Write an ONNX model in which an RMSNorm is one operator, after it ran in ONNX Runtime.

        Needs ``pip install 'normfuse[onnx]'``. The raised errors are those of
        :func:`normfuse.export.onnx.save_onnx`.
        """
        from normfuse.export.onnx import save_onnx

        save_onnx(self.program, path, opset_version=opset_version, check=check)
        return Path(path)

    def to_aoti(self, path: str | Path) -> Path:
        """Write a package that AOTInductor compiled, which runs without Python, and without normfuse.

        Raises:
            InputError: when the file cannot be written.
            CaptureError: when Inductor cannot compile the program.
        """
        from normfuse.export.aoti import save_aoti

        return save_aoti(self.program, path)


def rewrite(
    model_or_exported_program: torch.nn.Module | ExportedProgram | str | Path,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str = "rms_norm",
    dynamic_shapes: Any = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Rewritten:
    """The same function with every norm in its cheapest proven form; the input stays untouched.

    Args:
        model_or_exported_program: a module in evaluation mode, the result of ``torch.export``, or the
            path of a ``.pt2`` file or of a ``transformers`` folder, whose model is loaded whole;
            :func:`normfuse.rewrite_folder` writes a folder and needs less memory.
        args, kwargs: example inputs, for a module; a folder's model has random ones without any.
        target: ``"rms_norm"``, or ``"layer_norm"`` to recognise only.
        dynamic_shapes: as in ``torch.export.export``, for a module.
        progress: is told what is run next while the rewrite is verified.
        options: those of ``torch.compile`` without their prefix, e.g. ``expect={"rms_norm": 25}``;
            ``verify="sites"``, the default here, runs every norm before and after, on hostile inputs too,
            and reverts those over the error budget, for about the price of 25 runs of the model;
            ``"thorough"`` does so on every kind of hostile inputs; ``"output"`` compares the whole once
            and raises.

    Raises:
        InputError: for a model that is compiled already, in training mode, or, unless ``verify="off"``,
            without values.
        CaptureError: when the model cannot be exported.
        OptionError: for an unknown option, target or rule.
        ExpectationError: when ``expect`` is not met.
        VerificationError: when ``verify="output"`` finds a difference beyond the error budget. The
            inputs are the example inputs of the program. Also when the rewritten program makes no module,
            unless ``verify="off"``.
    """
    started = time.perf_counter()
    checked = checked_options({"target": target, "verify": "sites", **options})
    exported = _exported(model_or_exported_program, args, kwargs, dynamic_shapes)
    if checked.verify != "off":
        require_values(exported.state_dict.items())
    program, report, folded = _rewritten(exported, checked, progress or (lambda text: None))
    check_expectation(report, checked)
    made, names = with_folded_weights(exported, program, folded)
    report.copied_bytes = max(_held_by(made) - _held_by(exported), 0)
    if checked.verify != "off":
        _check_whole(made)
    result = Rewritten(made, report, _changes(exported, program, folded, names))
    _note_dropped_calls(exported, report)
    report.seconds = time.perf_counter() - started
    return replace(result, equivalence=_verify(exported, result)) if checked.verify == "output" else result


def _exported(given: Any, args: Sequence[Any], kwargs: Any, dynamic_shapes: Any) -> ExportedProgram:
    if isinstance(given, (str, Path)) and Path(given).is_dir():
        from normfuse.checkpoint.whole import program_of

        return program_of(given, args, kwargs, dynamic_shapes)
    return as_program(given, args, kwargs, dynamic_shapes)


def checked_options(given: Mapping[str, Any]) -> Options:
    """Options by their names without prefix, none of them unknown, useless or against another one.

    Raises:
        OptionError: naming the option, and what to do about it.
    """
    options = Options.checked(given, prefix="")
    check_rules(options, prefix="")
    return options


def _rewritten(
    exported: ExportedProgram, options: Options, progress: Callable[[str], None]
) -> tuple[Program, Report, list[Folded]]:
    """The pipeline, verified site by site where that was asked for and inputs are at hand."""
    program = program_of(exported)
    if options.rotation is not None:
        give_rotation(program, options.rotation)
    if not options.by_sites:
        return program, *run_pipeline(program, options)
    from normfuse.verify.certificates import complete_certificates
    from normfuse.verify.input_sets import sets_of_export
    from normfuse.verify.sites import rewrite_verified

    inputs = input_values(exported, program)
    if inputs is None:
        report, folded = run_pipeline(program, options)
        report.notes.append("not verified: the exported program holds no example inputs")
    else:
        sets = sets_of_export(exported, program, options.verify == "thorough")
        program, report, folded = rewrite_verified(program, options, inputs, sets, progress)
    complete_certificates(report, program, folded)
    return program, report, folded


def _check_whole(made: ExportedProgram) -> None:
    """Whether the program can be put together again by whoever loads it."""
    try:
        made.module()
    except Exception as error:
        message = f"the rewritten program cannot be turned into a module: {cause(error)}"
        raise VerificationError(message) from error


def _held_by(program: ExportedProgram) -> int:
    """The bytes of all weights, each piece of memory counted once."""
    tensors = (t for t in (*program.state_dict.values(), *program.constants.values()) if torch.is_tensor(t))
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if t.layout == torch.strided}
    return sum(storage.nbytes() for storage in storages.values())


def _note_dropped_calls(exported: ExportedProgram, report: Report) -> None:
    calls = preserved_calls(exported)
    if calls:
        report.notes.append(f"the call signatures of {', '.join(calls)} are not preserved")


def _changes(
    exported: ExportedProgram, program: Program, folded: Sequence[Folded], names: Sequence[str]
) -> WeightMap | InputError:
    try:
        return weight_map(exported, program, folded, names)
    except InputError as error:
        return error  # raised when somebody asks for the map; the program is right without one


def explain_program(exported: ExportedProgram, options: Options, observer: Observer | None = None) -> Report:
    """What :func:`rewrite` would do to a program; no weight is folded and the program stays as it is."""
    report, _ = run_pipeline(program_of(exported), options, observer)
    return report


def as_program(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """A module, exported with these inputs; or the program that is given, also as the path of its file.

    Raises:
        InputError: for a model that is compiled already or in training mode, and for a folder.
        CaptureError: when the model cannot be exported.
    """
    if isinstance(model, (str, Path)) and Path(model).is_dir():
        raise InputError(
            f"{model} is a folder; for checkpoints there are normfuse.rewrite_folder(folder, output) and "
            "normfuse.explain_folder(folder)"
        )
    if is_program_file(model):
        return load_program(model)
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
    for name, part in model.named_modules():
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise InputError(
                f"the model is quantized: {name or 'it'} is a quantized {type(part).__name__}, whose weights "
                "cannot be folded; pass the model as it was before it was quantized"
            )


def _verify(exported: ExportedProgram, result: Rewritten) -> Equivalence:
    from normfuse.verify import verify

    if exported.example_inputs is None:
        raise InputError("verify='output' needs example inputs, and the exported program holds none")
    args, kwargs = exported.example_inputs
    found = verify(exported, result, args, kwargs)
    if found.differs:
        worst = "" if found.worst is None else f": error ratio {found.worst.figure}"
        raise VerificationError(f"the rewritten program differs from the original{worst}")
    if not found.ok:
        raise VerificationError(
            f"the rewritten program could not be judged on its example inputs: {', '.join(found.unjudged)}, "
            "for which the original itself is no yardstick"
        )
    return found
