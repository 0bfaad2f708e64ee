"""Programs compiled ahead of time by AOTInductor, to be run without Python."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from normfuse.errors import CaptureError, InputError, cause
from normfuse.files import replacing
from normfuse.inductor_compat import compile_package

__all__ = ["save_aoti"]


def save_aoti(program: ExportedProgram, path: str | Path) -> Path:
    """Write a package that ``torch._inductor.aoti_load_package`` and its C++ counterpart run.

    Raises:
        InputError: when the file cannot be written, or is no ``.pt2`` file.
        CaptureError: when Inductor cannot compile the program.
    """
    if Path(path).suffix != ".pt2":
        raise InputError(f"the package has to be a .pt2 file, not {path}")
    with replacing(path) as unfinished:
        try:
            with torch.no_grad():
                compile_package(program, unfinished)
        except Exception as error:
            raise CaptureError(f"AOTInductor cannot compile the program: {cause(error)}") from error
    return Path(path)
