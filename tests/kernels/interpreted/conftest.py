"""Collected only where the interpreter was switched on before Triton was imported.

``tests/kernels/test_interpreted.py`` starts a process for that; by hand it is
``TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted``.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

IS_ON = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if IS_ON else ["test_*.py"]


def _widened(value):
    """The interpreter keeps bfloat16 as the upper half of float32's bits, and would multiply those."""
    return (value.data.astype(np.uint32) << 16).view(np.float32)


@pytest.fixture(autouse=True, scope="session")
def _bfloat16_products():
    if IS_ON:
        import triton.language as tl
        from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

        plain = InterpreterBuilder.create_dot

        def create_dot(self, a, b, d, *options):
            wide = [
                TensorHandle(_widened(v), tl.float32) if v.dtype.scalar == tl.bfloat16 else v for v in (a, b)
            ]
            return plain(self, *wide, d, *options)

        InterpreterBuilder.create_dot = create_dot
