"""Inputs to capture a model of ``transformers`` with, on the meta device: only their shapes matter."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from normfuse.errors import InputError

__all__ = ["example_inputs"]

_BATCH, _LENGTH = 2, 8


def example_inputs(model: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Text, images or speech, by the names of the model's arguments; nothing is cached or returned beside it.

    Raises:
        InputError: for a model that takes something else.
    """
    taken = inspect.signature(model.forward).parameters
    main = model.main_input_name
    given: dict[str, Any] = {}
    if main == "input_ids":
        given["input_ids"] = _ids()
    elif main == "pixel_values":
        given["pixel_values"] = _pixels(model.config, dtype)
    elif main == "input_features" and hasattr(model.config, "max_source_positions"):
        given["input_features"] = _sound(model.config, dtype)
    else:
        raise InputError(
            f"{type(model).__name__} takes {main}; only folders of models of text, images and speech are read"
        )
    if "input_ids" in taken and main != "input_ids" and hasattr(model.config, "text_config"):
        given["input_ids"] = _ids()
    if getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = _ids()
    if main == "input_ids" and hasattr(model.config, "vision_config") and "pixel_values" in taken:
        given["pixel_values"] = _pixels(model.config.vision_config, dtype)
    if getattr(model.config, "add_cross_attention", False) and "encoder_hidden_states" in taken:
        shape = (_BATCH, _LENGTH, model.config.hidden_size)
        given["encoder_hidden_states"] = torch.zeros(shape, dtype=dtype, device="meta")
    return given | ({"use_cache": False} if "use_cache" in taken else {})


def _ids() -> torch.Tensor:
    return torch.zeros(_BATCH, _LENGTH, dtype=torch.long, device="meta")


def _sound(config: Any, dtype: torch.dtype) -> torch.Tensor:
    """As many frames of a spectrogram as there are positions, each of which takes two."""
    shape = (_BATCH, config.num_mel_bins, 2 * config.max_source_positions)
    return torch.zeros(shape, dtype=dtype, device="meta")


def _pixels(config: Any, dtype: torch.dtype) -> torch.Tensor:
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return torch.zeros(_BATCH, getattr(config, "num_channels", 3), height, width, dtype=dtype, device="meta")
