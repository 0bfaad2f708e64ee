"""``normfuse rewrite``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normfuse.cli.folders import FolderJob, is_folder_job
from normfuse.cli.options import (
    CRMS_BASIS,
    DEBUG,
    DTYPE,
    HTML,
    JSON,
    ONLY,
    QUIET,
    SKIP,
    SOURCE,
    TARGET,
    Target,
    Verify,
    as_list,
    chosen,
)
from normfuse.cli.outcome import one_line_errors
from normfuse.cli.verification import verification_of
from normfuse.progress import steps

if TYPE_CHECKING:
    from normfuse.cli.verification import Verification
    from normfuse.rewriting import Rewritten
    from normfuse.sources import Source

__all__ = ["map_beside", "rewrite"]

DESTINATION = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="DST",
        help="The .pt2 or .onnx file to write, or, from a checkpoint folder, the folder to make.",
        show_default=False,
    ),
]
ARCHITECTURE = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS",
        help="Of a checkpoint folder: write it as a model of this class of transformers, where the rewritten "
        "model is one, e.g. LlamaForCausalLM for an OLMo.",
        show_default=False,
    ),
]
NEW_BIASES = Annotated[
    bool,
    typer.Option(
        "--new-biases",
        help="Of a checkpoint folder: let layers without a bias get one where a norm's bias has no other "
        "place. transformers alone does not load the result then.",
    ),
]
FORCE = Annotated[
    bool, typer.Option("--force", help="Replace the checkpoint folder that stands where the output goes.")
]
VERIFY = Annotated[
    Verify | None,
    typer.Option(
        help="sites: compare every norm and the outputs with the original, on the example inputs and on "
        "hostile ones, and leave norms alone that lose precision. output: compare the outputs on the "
        "example inputs, and write nothing when they differ. thorough: as sites, on every kind of hostile "
        "inputs. off: compare nothing. "
        "Without it: sites, where that is possible.",
        show_default=False,
    ),
]
EXPECT = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND=N", help="Fail unless N norms of this kind remain; repeatable."),
]


def rewrite(
    source: SOURCE,
    destination: DESTINATION,
    target: TARGET = Target.RMS_NORM,
    crms_basis: CRMS_BASIS = None,
    only: ONLY = None,
    skip: SKIP = None,
    dtype: DTYPE = None,
    verify: VERIFY = None,
    expect: EXPECT = None,
    dynamic: Annotated[
        bool,
        typer.Option("--dynamic", help="Keep every size of a Python model's inputs open where possible."),
    ] = False,
    architecture: ARCHITECTURE = None,
    new_biases: NEW_BIASES = False,
    force: FORCE = False,
    json_file: JSON = None,
    html: HTML = None,
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """Write SRC with every norm in its cheapest proven form to DST, a .pt2 program or an .onnx model.

    A program loads with torch.export.load, also where normfuse is not installed. Beside it stands a map
    (JSON) of the tensors that changed, which `normfuse fold` applies to other checkpoints of the model. An
    ONNX model keeps each RMSNorm as one operator, and is run in ONNX Runtime before it is written.

    SRC may be a checkpoint folder of transformers as well (config.json, safetensors). DST is one then, which
    normfuse.load_checkpoint loads. It is written file by file, and interrupted work is gone on with. Where
    DST ends in .pt2 or .onnx, the model is loaded whole and exported, for any batch and length.
    """
    with one_line_errors(debug):
        rules: dict[str, Any] = {"only": as_list(only), "skip": as_list(skip) or []}
        if is_folder_job(source, destination):
            given = {
                "--dtype": dtype, "--crms-basis": crms_basis, "--dynamic": dynamic,
                "--verify": verify not in (None, Verify.OFF),
            }  # fmt: skip
            unused = tuple(name for name, value in given.items() if value)
            asked_of_folder = {"target": target.value, "expect": _counts(expect), **rules}
            job = FolderJob(
                source, destination, asked_of_folder, architecture, new_biases, force, json_file, html, unused
            )
            job.run(quiet)
            return
        _refuse_folder_options({"--architecture": architecture, "--new-biases": new_biases, "--force": force})
        _check_outputs(source, destination, json_file, html)
        asked = None if verify is None else verify.value
        level = asked or "sites"
        options = {
            "target": target.value, "crms_basis": None if crms_basis is None else crms_basis.value,
            "verify": level, "expect": _counts(expect), **rules,
        }  # fmt: skip
        with steps(quiet) as say:
            say(f"loading {source}")
            loaded = _loaded(source, chosen(dtype), dynamic, options)
            if asked not in (None, "off"):
                _require_inputs(loaded, level)
            say("rewriting" if asked == "off" else "rewriting and verifying")
            result = _rewritten(loaded, {**options, "progress": lambda text: say(f"verifying {text}")})
            verification = verification_of(result, level)
            if asked in ("sites", "thorough") and verification is None:
                raise _unverified(result)
            say(f"writing {destination}")
            norms = _write(result, verification, destination, json_file)
            if html is not None:
                result.report.to_html(html, model=source, verification=_verified(verification))
            unmapped = result.unmapped and destination.suffix == ".pt2"
            stale = _set_aside(map_beside(destination)) if unmapped else None
        if not quiet:
            _show(result, verification)
            typer.echo(_written(result, destination, norms))
        if stale is not None:
            typer.echo(f"the map that stood there is of another program, and is {stale} now", err=True)


def map_beside(destination: Path) -> Path:
    """``out.map.json`` for ``out.pt2``."""
    return destination.with_suffix(".map.json")


def _check_outputs(source: str, destination: Path, *others: Path | None) -> None:
    from normfuse.errors import InputError
    from normfuse.files import check_outputs

    if destination.suffix not in (".pt2", ".onnx"):
        if ":" not in source and not Path(source).exists():  # it may be meant as a checkpoint folder
            raise InputError(f"{source or 'the input'} does not exist")
        raise InputError(f"the output has to be a .pt2 or an .onnx file, not {destination}")
    changes = map_beside(destination) if destination.suffix == ".pt2" else None
    check_outputs((destination, changes, *others), [source])


def _refuse_folder_options(options: Mapping[str, object]) -> None:
    from normfuse.errors import OptionError

    for name, given in options.items():
        if given:
            raise OptionError(f"{name} is for checkpoint folders that become folders; leave it out")


def _counts(expect: list[str] | None) -> dict[str, int] | None:
    from normfuse.errors import OptionError

    counts = {}
    for text in expect or ():
        kind, _, count = text.partition("=")
        if not count.isdecimal():
            raise OptionError(f"--expect takes KIND=N, e.g. rms_norm=25, not {text!r}")
        counts[kind] = int(count)
    return counts or None


def _loaded(text: str, dtype: str | None, dynamic: bool, options: dict[str, Any]) -> Source:
    from torch.export import ExportedProgram

    from normfuse.capture.exported import open_sizes
    from normfuse.errors import InputError
    from normfuse.rewriting import checked_options
    from normfuse.sources import load_source

    checked_options(options)
    source = load_source(text).with_dtype(dtype)
    if not dynamic or source.is_folder:  # whose sizes are open already
        return source
    if isinstance(source.model, ExportedProgram):
        raise InputError(f"{text} is a program: which of its sizes are open was decided when it was exported")
    return replace(source, dynamic_shapes=open_sizes(source.model, source.args, source.kwargs))


def _require_inputs(source: Source, level: str) -> None:
    from normfuse.errors import InputError

    if source.is_program and getattr(source.model, "example_inputs", None) is None:
        raise InputError(
            f"--verify {level} needs example inputs, and {source.name} holds none; save it with them, "
            "or leave --verify out"
        )


def _unverified(result: Rewritten) -> Exception:
    from normfuse.errors import VerificationError

    why = "; ".join(result.report.notes) or "no output could be judged on any input"
    return VerificationError(f"{why}; --verify off writes the program unverified")


def _rewritten(source: Source, options: dict[str, Any]) -> Rewritten:
    from normfuse.rewriting import rewrite as rewrite_model

    return rewrite_model(
        source.model, source.args, source.kwargs, dynamic_shapes=source.dynamic_shapes, **options
    )


def _write(
    result: Rewritten, verification: Verification | None, destination: Path, json_file: Path | None
) -> dict[str, int]:
    """Write all files; the norms of an ONNX model by operator."""
    from contextlib import ExitStack

    from normfuse.export.onnx import save_onnx
    from normfuse.files import json_text, replacing

    record = {
        **result.report.to_dict(),
        "verification": None if verification is None else verification.to_dict(),
    }
    with ExitStack() as stack:
        if json_file is not None:
            unfinished = stack.enter_context(replacing(json_file))
            unfinished.write_text(json_text(record), encoding="utf-8")
        if destination.suffix == ".onnx":
            return save_onnx(result.program, destination, check=result.program.example_inputs is not None)
        result.save(destination, map_path=None if result.unmapped else map_beside(destination))
        return {}


def _set_aside(stale: Path) -> Path | None:
    """A map of the program that was replaced must not be taken for one of the new program."""
    if not stale.exists():
        return None
    number = 1
    while (kept := stale.with_name(f"{stale.name}.old{number}")).exists():
        number += 1
    return stale.rename(kept)


def _show(result: Rewritten, verification: Verification | None) -> None:
    typer.echo(str(result.report))
    typer.echo(_verified(verification))


def _verified(verification: Verification | None) -> str:
    return "NOT verified" if verification is None else str(verification)


def _written(result: Rewritten, destination: Path, norms: dict[str, int]) -> str:
    if destination.suffix == ".onnx":
        counts = ", ".join(f"{count} {name}" for name, count in norms.items()) or "no norms"
        checked = "" if result.program.example_inputs is None else "; it ran in ONNX Runtime"
        return f"wrote {destination} with {counts}{checked}"
    if result.unmapped:
        return f"wrote {destination}, without a map for other checkpoints: {result.unmapped}"
    return f"wrote {destination} and {map_beside(destination)}"
