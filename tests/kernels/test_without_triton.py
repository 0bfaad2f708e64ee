"""normfuse without Triton: everything but the kernels, and a sentence where those are asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import importlib.util, sys
plain = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "triton" else plain(name, *more)
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
import normfuse
from normfuse.kernels import linear_rms_norm, rms_norm
x = torch.ones(2, 4)
assert torch.allclose(rms_norm(x), x)
assert torch.allclose(linear_rms_norm(x, torch.eye(4)), x)
with FakeTensorMode():
    x = torch.empty(2, 4, device="cuda")
try:
    rms_norm(x)
except normfuse.InputError as error:
    print(error)
assert not any(name.startswith("normfuse.kernels.code") for name in sys.modules)
"""


def test_the_reference_works_and_a_cuda_tensor_says_what_is_missing():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wanted = "rms_norm on cuda:0 needs the package triton; pip install 'normfuse[triton]'"
    assert done.stdout.strip() == wanted


def test_compiled_on_a_cpu_in_one_graph():
    from normfuse.kernels import linear_rms_norm, rms_norm

    def block(x, weight, matrix):
        y, h = rms_norm(x, weight, residual=x)
        return y, linear_rms_norm(h, matrix)

    arguments = torch.randn(3, 8), torch.randn(8), torch.randn(5, 8)
    fast = torch.compile(block, backend="eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(fast(*arguments), block(*arguments), strict=True))
