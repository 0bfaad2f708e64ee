"""Programs as ONNX models, checked in ONNX Runtime; needs ``pip install 'normfuse[onnx]'``.

From opset 23 on, ONNX has RMSNormalization as one operator; before that an RMSNorm falls into six, while a
LayerNorm stays one, so that a rewritten model would be slower than the original.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from normfuse.errors import CaptureError, InputError, NormfuseError, VerificationError, cause
from normfuse.files import replacing

__all__ = ["OPSET", "export_onnx", "onnx_call", "save_onnx"]

#: The first opset with RMSNormalization.
OPSET = 23
#: How many times as far from float64 as the program ONNX Runtime may be: its products add up in orders of
#: their own, for which 3.5 times were measured where both were right.
_BUDGET = 10.0


def save_onnx(
    program: ExportedProgram, path: str | Path, *, opset_version: int = OPSET, check: bool = True
) -> dict[str, int]:
    """Write a program as an ONNX model, and say how many norms of which operator it has.

    Weights of more than 2 GB go into a file of the same name with ``.data`` behind it. With ``check`` the
    model runs in ONNX Runtime on the program's example inputs first, and its outputs may be ten times as far
    from float64 as the program's own.

    Raises:
        NormfuseError: when a package is not installed.
        InputError: when the file cannot be written, or there is nothing to check with.
        CaptureError: when an operator has no form in ONNX, or ONNX Runtime cannot run the model.
        VerificationError: when ONNX Runtime's answers differ.
    """
    given = program.example_inputs
    if check and given is None:
        raise InputError("the program holds no example inputs to check the ONNX model with; pass check=False")
    with replacing(path) as unfinished:
        norms = export_onnx(program, unfinished, opset_version=opset_version)
        if check and given is not None:
            _check(program, unfinished, *given)
        data = unfinished.with_name(f"{unfinished.name}.data")
        if data.exists():
            data.replace(Path(path).resolve().with_name(data.name))
    return norms


def export_onnx(
    program: ExportedProgram | torch.nn.Module,
    path: Path,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    opset_version: int | None = OPSET,
) -> dict[str, int]:
    """Write a program, or a module with inputs, to ``path``; how many norms it has, by operator."""
    _require("onnxscript")
    try:
        with _quiet():
            exported = torch.onnx.export(
                program, args, kwargs=kwargs, dynamo=True, opset_version=opset_version, verbose=False
            )
        assert exported is not None
    except Exception as error:
        raise CaptureError(f"ONNX export failed: {cause(_first(error))}") from error
    exported.save(path)
    names = Counter(node.op_type for node in exported.model.graph)
    return {name: count for name, count in sorted(names.items()) if name.endswith("Normalization")}


def _first(error: BaseException) -> BaseException:
    """What was raised first: the exporter says in several layers of advice that something was."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def onnx_call(
    path: Path, args: tuple[Any, ...], kwargs: dict[str, Any], providers: tuple[str, ...] = ()
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """A call of the model in ONNX Runtime, with as many threads as PyTorch has.

    The inputs are handed over beforehand; those of the call are not looked at.

    Raises:
        NormfuseError: when it is not installed.
        CaptureError: when it cannot run the model.
    """
    runtime = _require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(path, options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:
        raise CaptureError(f"ONNX Runtime cannot run the model: {cause(error)}") from error
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    names = [one.name for one in session.get_inputs()]
    feed = {name: t.detach().cpu().numpy() for name, t in zip(names, tensors, strict=True)}

    def run(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        return tuple(torch.as_tensor(value) for value in session.run(None, feed))

    return run


def _check(program: ExportedProgram, path: Path, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    from normfuse.verify import verify

    run = onnx_call(path, args, kwargs)
    module = program.module()

    def flat(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        leaves = pytree.tree_leaves(module(*args, **kwargs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))

    found = verify(flat, run, args, kwargs)
    if not all(leaf.ok or (leaf.judged and leaf.error_ratio <= _BUDGET) for leaf in found.leaves):
        raise VerificationError(f"ONNX Runtime answers something else: {found}")


def _require(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise NormfuseError(f"this needs {error.name}: pip install 'normfuse[onnx]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter warns of optional packages and of deprecations of its own."""
    names = ("torch.onnx._internal.exporter._registration", "torch.onnx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
