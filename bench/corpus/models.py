"""The model of a configuration, with random weights, in evaluation mode."""

from __future__ import annotations

import importlib
from typing import Any

import torch

__all__ = ["MAX_PARAMETERS", "build"]

MAX_PARAMETERS = 110_000_000


def build(config: Any) -> torch.nn.Module:
    """A model with weights drawn from seed 0.

    Raises:
        ValueError: where the model has too many parameters, or no class takes this configuration.
    """
    kind = _model_class(config)
    _without_cache(config)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model: torch.nn.Module = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.05))
    return model


def _without_cache(config: Any) -> None:
    """Outputs are tensors only, also those of the models inside."""
    config.use_cache = False
    for name in type(config).sub_configs:
        inner = getattr(config, name, None)
        if hasattr(inner, "model_type"):
            _without_cache(inner)


def _model_class(config: Any) -> Any:
    from transformers import MODEL_MAPPING, PreTrainedModel

    try:
        mapped = MODEL_MAPPING[type(config)]
        return mapped[0] if isinstance(mapped, (list, tuple)) else mapped
    except KeyError:
        pass
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    fitting = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, PreTrainedModel)
        and value.__dict__.get("config_class", getattr(value, "config_class", None)) is type(config)
        and not value.__name__.endswith("PreTrainedModel")
    ]
    if not fitting:
        raise ValueError(f"no class takes a {type(config).__name__}")
    own = type(config).__name__.removesuffix("Config")
    return min(fitting, key=lambda c: (c.__name__ not in (own, f"{own}Model"), len(c.__name__)))
