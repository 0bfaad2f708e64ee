"""The private parts of PyTorch that normfuse stands on, in one place.

A new PyTorch release is this file's work. Nothing here imports Dynamo or Inductor; what needs
them lives in ``normfuse.backends``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._python_dispatch import _disable_current_modes

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "fake_storage_id",
    "keep_guards",
    "make_fx",
    "outside_tracing",
    "preserve_node_meta",
    "schema_major",
    "size_functions",
    "statically_known_true",
    "storage_is_abandoned",
]


def schema_major() -> int:
    """The version of program files that this PyTorch reads."""
    from torch._export.serde.schema import SCHEMA_VERSION

    return int(SCHEMA_VERSION[0])


def size_functions() -> frozenset[str]:
    """Functions of symbolic sizes, by the names that program files use."""
    from torch.utils._sympy import functions

    return frozenset(functions.__all__)


def preserve_node_meta() -> AbstractContextManager[None]:
    """While active, retraced nodes inherit the metadata of the node being interpreted."""
    context: AbstractContextManager[None] = fx_traceback.preserve_node_meta()
    return context


@contextmanager
def outside_tracing() -> Iterator[None]:
    """Run real kernels, whatever fake or tracing mode the caller is in, and keep the results usable.

    Tensors made under inference mode carry no version counter, so that mode is left as well.
    """
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        yield


def fake_storage_id(value: torch.Tensor) -> int | None:
    """Identity of the memory a fake tensor stands for: equal for views of one another."""
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def keep_guards(original: ExportedProgram, rewritten: ExportedProgram) -> None:
    """Give a rewritten program the conditions on input sizes of the original, no more and no fewer.

    A program that was read from a file has them as text only, and tracing new operators may add some.
    """
    rewritten._guards_code = list(original._guards_code)


def storage_is_abandoned(storage: Any) -> bool:
    """Whether the caller holds the only reference to this storage."""
    return int(torch._C._storage_Use_Count(storage._cdata)) <= 1
