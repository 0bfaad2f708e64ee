"""Where a model comes from: a ``.pt2`` program, a checkpoint folder, or ``module.path:factory``."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from normfuse.errors import InputError, cause
from normfuse.pt2 import load_program

__all__ = ["Source", "load_source"]

_SUFFIXES = (
    ".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".onnx", ".h5", ".keras", ".gguf", ".tflite",
    ".json", ".py",
)  # fmt: skip
_DTYPES = {d: getattr(torch, d) for d in ("float16", "bfloat16", "float32", "float64")}


@dataclass(frozen=True)
class Source:
    """A model, or an exported program, with example inputs.

    ``dynamic_shapes`` is what a factory returned for ``torch.export``, or None.
    """

    name: str
    model: torch.nn.Module | ExportedProgram
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None

    @property
    def is_program(self) -> bool:
        return isinstance(self.model, ExportedProgram)

    @property
    def is_folder(self) -> bool:
        return Path(self.name).is_dir()

    def module(self) -> torch.nn.Module:
        """The model, or the program as a module."""
        return self.model.module() if isinstance(self.model, ExportedProgram) else self.model

    def with_dtype(self, name: str | None) -> Source:
        """The same model and inputs with every floating tensor in this dtype.

        Raises:
            InputError: for an unknown dtype, and for a program: a model that computes its softmax or its
                norms in float32 whatever its weights are has lost that when it was exported in float32,
                so nobody could tell which computations to convert.
        """
        if name is None:
            return self
        if name not in _DTYPES:
            raise InputError(f"there is no dtype {name!r} here; choose one of {', '.join(_DTYPES)}")
        if self.is_folder:
            raise InputError(
                f"{self.name} is a folder, whose files say the dtype; convert the model with "
                f".to(torch.{name}) and save_pretrained first"
            )
        if isinstance(self.model, ExportedProgram):
            raise InputError(
                f"{self.name} is a program, which no longer says what the model keeps in its own precision; "
                f"convert the model to {name} and export it again, or name its Python code instead"
            )
        dtype = _DTYPES[name]

        def cast(leaf: Any) -> Any:
            return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

        args, kwargs = pytree.tree_map(cast, (self.args, dict(self.kwargs)))
        return replace(self, model=self.model.to(dtype), args=args, kwargs=kwargs)


def load_source(text: str, **arguments: Any) -> Source:
    """The model that ``text`` names; ``arguments`` go to a factory that takes them.

    Raises:
        InputError: when there is no such file or factory, the factory does not return a model and inputs, or
            a folder is damaged.
        CaptureError: when the model of a folder cannot be exported.
    """
    if text and Path(text).is_dir():
        return _folder(text)
    if text.endswith(".pt2") or (text and Path(text).exists()):
        return _program(text)
    module, _, factory = text.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *factory.split("."))):
        raise InputError(_not_a_source(text))
    return _made(text, _factory(module, factory), arguments)


def _not_a_source(text: str) -> str:
    if Path(text).suffix in _SUFFIXES:
        return f"{text} does not exist"
    hint = ""
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        hint = (
            f"; if it is the name of a model on a hub, get its folder first (hf download {text} --local-dir "
            "FOLDER), or write a function that returns (model, args), and name that function"
        )
    return f"{text!r} is neither a .pt2 file that exists nor module.path:factory{hint}"


def _folder(text: str) -> Source:
    """The model of a checkpoint folder, whole in memory, as a program for any batch and length."""
    from normfuse.checkpoint.whole import program_of

    return _of(text, program_of(text, (), None, None))


def _program(text: str) -> Source:
    return _of(text, load_program(text))


def _of(text: str, program: ExportedProgram) -> Source:
    args, kwargs = program.example_inputs or ((), {})
    return Source(text, program, tuple(args), dict(kwargs))


def _factory(module: str, name: str) -> Callable[..., Any]:
    here = os.getcwd()  # noqa: PTH109
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"cannot import {module}: {cause(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{module} has no {name}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(
            f"{module}:{name} is of type {type(found).__name__}, not a function that makes a model"
        )
    factory: Callable[..., Any] = found
    return factory


def _made(text: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Source:
    try:
        made = factory(**_accepted(factory, arguments))
    except (Exception, SystemExit) as error:
        raise InputError(f"{text} raised {cause(error)}") from error
    if isinstance(made, ExportedProgram):
        return _of(text, made)
    if not isinstance(made, tuple) or not 2 <= len(made) <= 4 or not isinstance(made[0], torch.nn.Module):
        raise InputError(
            f"{text} has to return (model, args), (model, args, kwargs) or "
            f"(model, args, kwargs, dynamic_shapes), not {_kind(made)}"
        )
    model, args, kwargs, shapes = (*made, {}, None)[:4] if len(made) == 2 else (*made, None)[:4]
    if isinstance(args, torch.Tensor):
        args = (args,)
    if not isinstance(args, (tuple, list)):
        raise InputError(f"{text} returns arguments of type {type(args).__name__}; a tuple is expected")
    if not isinstance(kwargs or {}, Mapping):
        raise InputError(
            f"{text} returns named arguments of type {type(kwargs).__name__}; a dict is expected"
        )
    return Source(text, model, tuple(args), dict(kwargs or {}), shapes)


def _accepted(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the factory has parameters for."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {k: v for k, v in arguments.items() if k in parameters}


def _kind(made: Any) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(part).__name__ for part in made)})"
    return f"an object of type {type(made).__name__}"
