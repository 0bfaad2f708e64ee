"""Inputs for a model by the names of its arguments: several recipes, the first that runs is taken."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["inputs_of"]

Inputs = dict[str, Any]


def inputs_of(model: torch.nn.Module) -> Iterator[Inputs]:
    """Keyword arguments to try, the most complete first; the same ones at every call."""
    names = list(inspect.signature(model.forward).parameters)
    choices = [[(n, maker) for maker in _makers(n, model)] for n in names if n in _KNOWN]
    required = {
        n for n, p in inspect.signature(model.forward).parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }  # fmt: skip
    main = str(getattr(model, "main_input_name", "input_ids"))
    for wanted in _selections(names, required, main):
        options = [c for c in choices if c and c[0][0] in wanted]
        for combination in itertools.islice(itertools.product(*options), 12):
            torch.manual_seed(0)
            yield dict(combination)


def _selections(names: list[str], required: set[str], main: str) -> Iterator[set[str]]:
    have = set(names)
    decoder = {"decoder_input_ids"} & have
    text, image = {"input_ids"} & have, {"pixel_values"} & have
    tried: list[set[str]] = []
    for chosen in (
        required | ({main} & have) | decoder,
        required | text | image | decoder,
        required | text | decoder,
        required | image,
        required | image | decoder,
        required | ({main} & have),
        required | ({"input_features"} & have) | decoder,
        required | ({"input_values"} & have) | decoder,
        required | ({"inputs_embeds", "hidden_states"} & have),
        required | ({"pixel_values_videos"} & have),
        required | text | ({"bbox"} & have),
        required,
    ):
        if chosen and chosen not in tried:
            tried.append(chosen)
            yield chosen


def _number(config: Any, *names: str, default: int) -> int:
    """The first of these attributes, in the configuration or in one inside it."""
    inner = [getattr(config, n, None) for n in getattr(type(config), "sub_configs", {})]
    for holder in (config, *[i for i in inner if i is not None]):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
                return int(value[0])
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return default


def _ids(config: Any) -> list[Any]:
    return [torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1))]


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def _images(config: Any) -> list[Any]:
    size = _number(config, "image_size", "img_size", "input_size", "crop_size", default=32)
    channels = _number(config, "num_channels", "in_channels", "in_chans", "num_input_channels", default=3)
    frames = _number(config, "num_frames", "frames_per_clip", default=4)
    flat = _number(config, "patch_size", default=8)
    return [
        _normal(2, channels, size, size), _normal(2, 3, 64, 64), _normal(2, 3, 224, 224),
        _normal(1, frames, channels, size, size), _normal(1, channels, frames, size, size),
        _normal(16, channels * flat * flat), _normal(2, 1, 3, size, size), _normal(2, 1, 64, 64),
        _normal(2, 2, 3, 64, 64),
    ]  # fmt: skip


def _features(config: Any) -> list[Any]:
    bins = _number(
        config, "num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim", "feat_dim",
        "feature_projection_input_dim", "num_mel_filters", "mel_bins", "input_channels", default=80,
    )  # fmt: skip
    positions = _number(config, "max_source_positions", default=64)
    return [
        _normal(2, bins, 2 * positions), _normal(2, 64, bins), _normal(2, bins, 64), _normal(2, 1, 64, bins),
        _normal(2, 128, bins), _normal(2, bins, 3000), _normal(2, 1, 1001, bins),
    ]  # fmt: skip


def _waves(config: Any) -> list[Any]:
    bins = _number(config, "num_mel_bins", default=80)
    return [_normal(2, 4000), _normal(2, 1, 4000), _normal(2, 64, bins), _normal(2, 1024, bins),
            _normal(1, 1, 16000), _normal(2, 16, 8)]  # fmt: skip


def _embeds(config: Any) -> list[Any]:
    width = _number(config, "hidden_size", "d_model", "embed_dim", "dim", default=32)
    return [_normal(2, 7, width), _normal(7, width), _normal(2, width, 7), _normal(2, width, 8, 8),
            _normal(2, 16, 16, width)]  # fmt: skip


def _boxes(config: Any) -> list[Any]:
    return [torch.randint(0, 9, (2, 7, 1), generator=torch.Generator().manual_seed(3)).repeat(1, 1, 4)]


def _series(config: Any) -> list[Any]:
    length = _number(config, "context_length", default=24) + max(
        getattr(config, "lags_sequence", None) or [0]
    )
    channels = _number(config, "num_input_channels", "input_size", default=1)
    return [_normal(2, length, channels), _normal(2, length), _normal(2, 512)]


def _series_like(extra: str) -> Any:
    def make(config: Any) -> list[Any]:
        past = _series(config)[:2]
        length = _number(config, "prediction_length", default=8)
        if extra == "mask":
            return [torch.ones_like(p) for p in past]
        if extra == "time":
            count = _number(config, "num_time_features", default=1)
            return [_normal(2, past[0].shape[1], count)]
        if extra == "future_time":
            return [_normal(2, length, _number(config, "num_time_features", default=1))]
        return [_normal(2, length), _normal(2, length, 1)]

    return make


def _grid(config: Any) -> list[Any]:
    return [torch.tensor([[1, 4, 4]]), [(1, 4, 4)]]


_KNOWN: dict[str, Any] = {
    **dict.fromkeys(("input_ids", "decoder_input_ids", "text_input_ids", "tokens"), _ids),
    **dict.fromkeys(("pixel_values", "pixel_values_videos", "images", "image", "pixels"), _images),
    **dict.fromkeys(("input_features", "audio_features", "spectrogram", "audio_values", "mel"), _features),
    **dict.fromkeys(("input_values", "waveform", "audio"), _waves),
    **dict.fromkeys(("inputs_embeds", "hidden_states", "hidden_state", "encoder_hidden_states",
                     "query_embeds", "embeddings", "visual_embeds"), _embeds),
    "bbox": _boxes,
    "past_values": _series,
    "past_observed_mask": _series_like("mask"),
    "past_time_features": _series_like("time"),
    "future_time_features": _series_like("future_time"),
    **dict.fromkeys(("grid_thw", "image_grid_thw"), _grid),
    "attention_mask": lambda config: [torch.ones(2, 7, dtype=torch.long)],
}  # fmt: skip


def _makers(name: str, model: torch.nn.Module) -> list[Any]:
    made: list[Any] = _KNOWN[name](model.config)
    return made
