"""Where the kernels run."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch

from normfuse.errors import InputError
from normfuse.torch_compat import is_inside_transform

__all__ = ["HAS_TRITON", "on_device", "runs_kernels", "takes_kernel"]

HAS_TRITON = find_spec("triton") is not None
#: Triton reads the variable when it is imported, so a later change means nothing.
_INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0") == "1"


def takes_kernel(where: str, x: torch.Tensor) -> bool:
    """Whether a call on ``x`` runs a kernel, and not the reference.

    So do tensors on a CUDA device, and all where Triton's interpreter is switched on; transforms and
    derivatives forward, of which a kernel knows nothing, take the reference.
    """
    if x.device.type == "cuda" and not HAS_TRITON:
        raise InputError(f"{where} on {x.device} needs the package triton; pip install 'normfuse[triton]'")
    return runs_kernels(x.device) and not is_inside_transform()


def runs_kernels(device: torch.device) -> bool:
    """Whether there are kernels for a device."""
    return HAS_TRITON and (device.type == "cuda" or _INTERPRETED)


def on_device(x: torch.Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be that of ``x``; compiled code knows it."""
    if x.device.type != "cuda" or torch.compiler.is_compiling() or not torch.cuda.is_available():
        return nullcontext()
    chosen: AbstractContextManager[None] = torch.cuda.device(x.device)
    return chosen
