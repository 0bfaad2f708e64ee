"""A folder as a model that is whole in memory, with inputs to capture it with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from normfuse.capture.exported import export_model
from normfuse.checkpoint.architecture import class_of
from normfuse.checkpoint.example import example_inputs
from normfuse.checkpoint.loading import built, load_checkpoint
from normfuse.checkpoint.source import RECORD, Folder

__all__ = ["model_of", "program_of"]


def model_of(folder: str | Path) -> Any:
    """The model of a folder, rewritten or not, in evaluation mode and in the dtype of its files.

    Raises:
        InputError: when a file is missing, damaged, or does not fit the class.
    """
    path = Path(folder)
    if (path / RECORD).is_file():
        return load_checkpoint(path)
    files = Folder(path)
    tensors = {name: files.tensor(name) for name in files}
    return built(class_of(files.config, path), path, tensors, files.dtype).eval()


def program_of(
    folder: str | Path, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> ExportedProgram:
    """The model of a folder, exported; without inputs, with random ones, for any batch and any length.

    It hands out no cache of keys and values, unless the inputs ask for one.

    Raises:
        InputError: for a damaged folder, and without inputs for a model of anything but text, images, speech.
        CaptureError: when the model cannot be exported.
    """
    model = model_of(folder)
    if args or kwargs:
        taken = inspect.signature(model.forward).parameters
        cache = {"use_cache": False} if "use_cache" in taken and not args else {}
        return export_model(model, args, cache | dict(kwargs or {}), dynamic_shapes)
    given = _random_inputs(model)
    return export_model(model, (), given, _sizes_of(given) if dynamic_shapes is None else dynamic_shapes)


def _random_inputs(model: Any) -> dict[str, Any]:
    """The same ones at every call."""
    generator = torch.Generator().manual_seed(0)
    tokens = getattr(model.config, "text_config", model.config)

    def filled(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(value.dtype)
        return torch.randint(tokens.vocab_size, tuple(value.shape), generator=generator)

    return {name: filled(value) for name, value in example_inputs(model, model.dtype).items()}


def _sizes_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """For ``torch.export``: any batch, and any number of tokens, where the model does not fix them."""

    def open_axes(value: Any) -> dict[int, Any] | None:
        if not isinstance(value, torch.Tensor):
            return None
        return dict.fromkeys(range(1 if value.is_floating_point() else 2), Dim.AUTO)

    return {name: open_axes(value) for name, value in inputs.items()}
