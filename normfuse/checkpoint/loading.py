"""A rewritten folder as a model: its class, with the norms replaced."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from normfuse.checkpoint.architecture import class_of, config_of, quietly
from normfuse.checkpoint.embeds import centre_given
from normfuse.checkpoint.modules import install
from normfuse.checkpoint.permitted import check_changes
from normfuse.checkpoint.record import Record
from normfuse.checkpoint.source import Folder
from normfuse.errors import InputError, cause

__all__ = ["built", "load_checkpoint"]


def load_checkpoint(folder: str | Path) -> torch.nn.Module:
    """The model of a folder that was rewritten by ``normfuse rewrite SRC -o FOLDER``.

        y = x / sqrt(mean(x**2) + eps) * weight + bias        in place of each converted LayerNorm

    (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4.) It is the class of the installed ``transformers``
    that ``config.json`` names, in evaluation mode, on the CPU and in the dtype of the files, with modules
    replaced as ``normfuse.json`` says; nothing of the folder is run. Parameters keep their names, but for new
    biases. ``inputs_embeds`` lose their mean where the model's own embeddings have none.

    Args:
        folder: the folder.

    Raises:
        InputError: when a file is missing, damaged, or does not fit the class.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{path} is no folder" if path.exists() else f"{path} does not exist")
    record, files = Record.load(path), Folder(path)
    model_class = class_of(files.config, path)
    if model_class.__name__ != record.architecture:
        raise InputError(
            f"{path}: config.json names {model_class.__name__}, and the weights are of another class"
        )
    tensors = {name: files.tensor(name) for name in files}
    biases = {layer: _held(tensors, name, path) for layer, name in record.biases.items()}
    model = built(model_class, path, tensors, files.dtype)
    _install(model, record, biases, path)
    with torch.no_grad():
        for layer, bias in biases.items():
            model.get_submodule(layer).get_parameter("bias").copy_(bias)
    if record.biases or record.changes.removed:
        model.save_pretrained = partial(_refuse_to_save, path)
    made: torch.nn.Module = model.eval()
    return made


def _refuse_to_save(path: Path, *args: Any, **kwargs: Any) -> None:
    raise InputError(
        f"the model of {path} has biases where its class has none, which transformers would drop as it loads "
        "what is saved here; copy that folder instead"
    )


def _held(tensors: dict[str, torch.Tensor], name: str, path: Path) -> torch.Tensor:
    if name not in tensors:
        raise InputError(f"{path} holds no tensor {name}, which normfuse.json names as a bias")
    return tensors[name]


def built(model_class: Any, path: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """The class that a folder's configuration names, with these tensors as its weights."""
    config = config_of(model_class, path)
    try:
        with quietly():
            model, found = model_class.from_pretrained(
                None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
            )
    except Exception as error:
        raise InputError(f"{path} does not fit {model_class.__name__}: {cause(error)}") from error
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found.get(kind):
            first = sorted(map(str, found[kind]))[0]
            raise InputError(f"{path} does not fit {model_class.__name__}: {kind.replace('_', ' ')}: {first}")
    _read_generation(model, path)
    return model


def _read_generation(model: Any, path: Path) -> None:
    if (path / "generation_config.json").is_file() and model.can_generate():
        from transformers import GenerationConfig

        try:
            with quietly():
                model.generation_config = GenerationConfig.from_pretrained(str(path), local_files_only=True)
        except Exception as error:
            file = path / "generation_config.json"
            raise InputError(f"{file} cannot be read, remove or replace it: {cause(error)}") from error


def _install(model: torch.nn.Module, record: Record, biases: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        check_changes(model, record.changes, biases)
        install(model, record.changes)
        centre_given(model, record.centred_inputs)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: normfuse.json does not fit {record.architecture}: {error}") from error
