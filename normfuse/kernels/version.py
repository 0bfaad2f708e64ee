"""What a figure that was measured with these kernels is valid for."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path

import torch

from normfuse.kernels.device import HAS_TRITON

__all__ = ["digest", "versions"]


@cache
def versions(*more: Path) -> str:
    """Of PyTorch, Triton and the source of the kernels and of ``more`` folders."""
    found = [torch.__version__, _triton()]
    return "-".join([*found, *(digest(folder) for folder in (Path(__file__).parent, *more))])


def _triton() -> str:
    if not HAS_TRITON:
        return ""
    import triton

    return str(triton.__version__)


def digest(folder: Path) -> str:
    """Of the names and texts of all Python files in a folder."""
    found = sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]
