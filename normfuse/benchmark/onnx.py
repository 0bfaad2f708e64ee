"""The model under ONNX Runtime, for comparison; needs ``pip install 'normfuse[onnx]'``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from normfuse.benchmark.subject import Subject
from normfuse.errors import CaptureError, NormfuseError

__all__ = ["onnx_session"]


def onnx_session(subject: Subject) -> Callable[..., Any]:
    """A call of the exported model in ONNX Runtime; inputs are handed over before any time is taken.

    Raises:
        NormfuseError: when the packages are not installed.
        CaptureError: when the model cannot be exported.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise NormfuseError(
            f"the contender onnxruntime needs {error.name}: pip install 'normfuse[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="normfuse-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        _export(subject, path)
        session = onnxruntime.InferenceSession(path, options, providers=_providers(subject))
    tensors = [
        t for t in pytree.tree_leaves((subject.args, dict(subject.kwargs))) if isinstance(t, torch.Tensor)
    ]
    names = [i.name for i in session.get_inputs()]
    feed = {name: t.detach().cpu().numpy() for name, t in zip(names, tensors, strict=True)}
    return lambda *args, **kwargs: session.run(None, feed)


def _export(subject: Subject, path: Path) -> None:
    try:
        exported = torch.onnx.export(
            subject.model, subject.args, kwargs=dict(subject.kwargs), dynamo=True, verbose=False
        )
        assert exported is not None
        exported.save(path)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise CaptureError(f"ONNX export failed: {type(error).__name__}: {first}") from error


def _providers(subject: Subject) -> list[str]:
    on_cuda = any(p.is_cuda for p in subject.model.parameters())
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if on_cuda else ["CPUExecutionProvider"]
