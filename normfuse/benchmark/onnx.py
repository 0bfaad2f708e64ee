"""The model under ONNX Runtime, for comparison; needs ``pip install 'normfuse[onnx]'``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normfuse.benchmark.subject import Subject
from normfuse.export.onnx import export_onnx, onnx_call

__all__ = ["onnx_session"]


def onnx_session(subject: Subject) -> Callable[..., Any]:
    """A call of the exported model in ONNX Runtime; inputs are handed over before any time is taken.

    Raises:
        NormfuseError: when the packages are not installed.
        CaptureError: when the model cannot be exported.
    """
    on_cuda = any(p.is_cuda for p in subject.model.parameters())
    with tempfile.TemporaryDirectory(prefix="normfuse-onnx-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(subject.model, path, subject.args, dict(subject.kwargs), opset_version=None)
        providers = ("CUDAExecutionProvider",) if on_cuda else ()
        return onnx_call(path, subject.args, dict(subject.kwargs), providers)
