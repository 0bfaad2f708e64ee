"""The promise of the offline door at the sizes that people have: minutes, so only on demand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.export import Dim

import normfuse
from bench import subjects
from normfuse.pt2 import load_program
from tests.programs.test_offline_models import RUNNER

pytestmark = [pytest.mark.models, pytest.mark.slow]
transformers = pytest.importorskip("transformers")

NORMS = {"gpt2": 25, "opt": 25, "vit": 25, "resnet": 0}


def made(name, dtype):
    torch.manual_seed(0)
    if name == "opt":
        model = transformers.OPTForCausalLM(transformers.OPTConfig()).eval()
        built = model, (torch.randint(3, 1000, (2, 16)),), {"use_cache": False}
    else:
        factory = {"gpt2": "gpt2_prefill", "vit": "vit_base", "resnet": "resnet50"}[name]
        built = getattr(subjects, factory)(2)
    model, args, kwargs = built
    convert = dtype if args[0].is_floating_point() else args[0].dtype
    return model.to(dtype), tuple(a.to(convert) for a in args), kwargs


def exported(name, dtype):
    model, args, kwargs = made(name, dtype)
    text = not args[0].is_floating_point()
    sizes = {0: Dim("batch", max=64), **({1: Dim("length", max=512)} if text else {})}
    shapes = {"input_ids" if text else "pixel_values": sizes, **dict.fromkeys(kwargs)}
    with torch.no_grad():
        return model, torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def others(name, dtype):
    """Another batch, and for text another length."""
    torch.manual_seed(3)
    if name in ("gpt2", "opt"):
        return (torch.randint(3, 1000, (3, 11)),)
    return (torch.randn(3, 3, 224, 224, dtype=dtype),)


@pytest.mark.parametrize("name", NORMS)
def test_float64(name, tmp_path):
    model, program = exported(name, torch.float64)
    rewritten = normfuse.rewrite(program)
    assert rewritten.report.after.get("rms_norm", 0) == NORMS[name]
    rewritten.save(tmp_path / f"{name}.pt2")
    inputs, kwargs = others(name, torch.float64), program.example_inputs[1]
    torch.save((inputs, kwargs), tmp_path / f"{name}.inputs")
    subprocess.run([sys.executable, "-c", RUNNER, str(tmp_path), name], check=True)
    with torch.no_grad():
        expected = model(*inputs, **kwargs).to_tuple()
    for found, wanted in zip(torch.load(tmp_path / f"{name}.outputs"), expected, strict=True):
        assert torch.linalg.vector_norm(found - wanted) <= 1e-11 * torch.linalg.vector_norm(wanted)


@pytest.mark.parametrize("name", NORMS)
def test_float32(name, tmp_path):
    model, program = exported(name, torch.float32)
    path = normfuse.rewrite(program).save(tmp_path / "out.pt2")
    found = normfuse.verify(model, load_program(path), others(name, torch.float32), program.example_inputs[1])
    assert found.error_ratio <= 1.5
    assert found.ok
