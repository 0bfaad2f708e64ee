"""Offline subjects: programs whose batch (and length) stay open, and other sizes to run them with."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from tests.backends.networks import example, prenorm
from tests.models.zoo import build

#: Names of ``subject``; the first three are transformers, the last has BatchNorm.
SUBJECTS = ("gpt2", "opt", "vit", "resnet")


def subject(
    name: str, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    if name == "resnet":
        return resnet(dtype), (pixels(4, dtype),), {}
    model, args, kwargs = build(name, dtype)
    return model, args, kwargs


def exported(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, ExportedProgram]:
    """The model and its program, open in batch and, for text, in length."""
    model, args, kwargs = subject(name, dtype)
    text = not args[0].is_floating_point()
    first = "input_ids" if text else "pixel_values"
    shapes = {first: {0: Dim("batch", max=64), **({1: Dim("length", max=32)} if text else {})}}
    with torch.no_grad():
        program = torch.export.export(
            model, args, kwargs, dynamic_shapes={**shapes, **dict.fromkeys(kwargs)}, strict=False
        )
    return model, program


def other_inputs(name: str, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Inputs of another batch and length than the exported ones."""
    torch.manual_seed(7)
    return (torch.randint(3, 100, (3, 11)),) if name in ("gpt2", "opt") else (pixels(3, dtype),)


def pixels(batch: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 16, dtype=dtype)


def resnet(dtype: torch.dtype) -> nn.Module:
    """A ResNet-50-shaped model: bottlenecks with BatchNorm, small."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="bottleneck", num_labels=5
    )
    model = ResNetForImageClassification(config).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.abs() + 0.3 * torch.rand_like(tensor))
    return model.to(dtype)


def small_program(dtype: torch.dtype = torch.float32, **sizes: int) -> ExportedProgram:
    """A pre-norm network whose batch is open; each call gives one of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, when a program is copied
        return copy.deepcopy(_small_program(dtype, tuple(sizes.items())))


@cache
def _small_program(dtype: torch.dtype, sizes: tuple[tuple[str, int], ...]) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(
            prenorm(dtype=dtype, **dict(sizes)),
            (example(dtype=dtype),),
            dynamic_shapes=({0: Dim("batch", min=2, max=64)},),
        )


# What a person would name on the command line: ``tests.programs.models:factory``.
def factory() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return prenorm(dtype=torch.float32), (example(dtype=torch.float32),)


def lone_tensor() -> tuple[nn.Module, torch.Tensor]:
    return prenorm(dtype=torch.float32), example(dtype=torch.float32)


def raises() -> None:
    raise ValueError("first line\nsecond line")


def leaves() -> None:
    raise SystemExit(3)


def returns_a_number() -> int:
    return 3


def in_training() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return prenorm(dtype=torch.float32).train(), (example(dtype=torch.float32),)


class _Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def branching() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return _Branching().eval(), (torch.randn(3),)


def other_inputs_than_it_takes() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return prenorm(dtype=torch.float32), (torch.randn(3, 7),)


def named_arguments_that_are_none() -> tuple[nn.Module, tuple[torch.Tensor, ...], int]:
    return prenorm(dtype=torch.float32), (example(dtype=torch.float32),), 3


not_callable = 3


def other_signature() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return nn.Bilinear(3, 4, 5).eval(), (torch.randn(2, 3), torch.randn(2, 4))


class Leaves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise SystemExit(3)


def leaves_in_forward() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Leaves().eval(), (example(dtype=torch.float32),)
