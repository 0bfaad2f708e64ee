"""The installed ``transformers`` class of a folder, on the meta device: its shape without a single weight."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from normfuse.errors import InputError, cause

__all__ = ["class_named", "class_of", "config_of", "empty_model", "quietly"]

#: Ways to compute attention and experts that `transformers` itself has; others may come from a hub.
_BUILT_IN = (None, "eager", "sdpa", "grouped_mm", "batched_mm")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError("a checkpoint folder needs transformers: pip install 'transformers>=5'") from error
    if int(transformers.__version__.split(".")[0]) < 5:
        raise InputError(f"a checkpoint folder needs transformers 5, and this is {transformers.__version__}")
    return transformers


@contextmanager
def quietly() -> Iterator[None]:
    """Without the remarks and bars of ``transformers``, which belong on nobody's screen here."""
    logger = logging.getLogger("transformers")
    level, bars = logger.level, _transformers().utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    _transformers().utils.logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if bars:
            _transformers().utils.logging.enable_progress_bar()


def class_of(config: Mapping[str, Any], folder: Path) -> Any:
    """The model class that ``config.json`` names, if it is one of the installed library's own.

    Raises:
        InputError: for code of the folder's own, quantized weights, and classes that are not installed.
    """
    for name, value in _entries(config):
        if name in ("auto_map", "trust_remote_code") and value:
            raise InputError(
                f"{folder} brings Python code of its own ({name} in config.json), which is not run; load the "
                "model yourself and pass it to normfuse.rewrite"
            )
        if "_implementation" in name and value not in _BUILT_IN:
            raise InputError(
                f"{folder / 'config.json'} names code that may be fetched and run ({name}); remove that entry"
            )
        if name == "quantization_config" and value:
            raise InputError(f"{folder} is quantized; rewrite the checkpoint from before it was")
    named = config.get("architectures")
    if not (isinstance(named, list) and len(named) == 1 and isinstance(named[0], str)):
        raise InputError(
            f"{folder / 'config.json'} names no architecture; save the model with save_pretrained"
        )
    return _found(named[0], f"{folder} is a model of the class {named[0][:60]!r}")


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a configuration and of those that it holds."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _entries(value)
        yield name, value


def class_named(name: str) -> Any:
    """A model class by its name.

    Raises:
        InputError: when the installed ``transformers`` has none of that name.
    """
    return _found(name, f"architecture names the class {name[:60]!r}")


def _found(name: str, what: str) -> Any:
    library = _transformers()
    found = getattr(library, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, library.PreTrainedModel)):
        raise InputError(f"{what}, which transformers {library.__version__} does not have")
    return found


def config_of(model_class: Any, folder: Path) -> Any:
    """The configuration of the folder.

    Raises:
        InputError: when the class does not take it.
    """
    try:
        with quietly():
            return model_class.config_class.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise InputError(
            f"{folder / 'config.json'} does not fit {model_class.__name__}: {cause(error)}"
        ) from error


def empty_model(model_class: Any, config: Any, dtype: torch.dtype, folder: Path) -> torch.nn.Module:
    """The model on the meta device, in evaluation mode.

    Raises:
        InputError: when it cannot be built from the configuration.
    """
    try:
        with quietly(), torch.device("meta"):
            model: torch.nn.Module = model_class._from_config(config, dtype=dtype)
            model.tie_weights()  # type: ignore[operator]
        return model.eval()
    except Exception as error:
        raise InputError(f"{model_class.__name__} cannot be built from {folder}: {cause(error)}") from error
