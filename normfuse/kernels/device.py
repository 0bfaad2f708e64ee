"""Where the kernels run."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch

from normfuse.errors import InputError

__all__ = ["HAS_TRITON", "on_device", "takes_kernel"]

HAS_TRITON = find_spec("triton") is not None
#: Triton reads the variable when it is imported, so a later change means nothing.
_INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0") == "1"


def takes_kernel(where: str, x: torch.Tensor) -> bool:
    """True for tensors on a CUDA device, and for all where Triton's interpreter is switched on."""
    if x.device.type == "cuda" and not HAS_TRITON:
        raise InputError(f"{where} on {x.device} needs the package triton; pip install 'normfuse[triton]'")
    return x.device.type == "cuda" or _INTERPRETED


def on_device(x: torch.Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be that of ``x``; compiled code knows it."""
    if x.device.type != "cuda" or torch.compiler.is_compiling() or not torch.cuda.is_available():
        return nullcontext()
    chosen: AbstractContextManager[None] = torch.cuda.device(x.device)
    return chosen
