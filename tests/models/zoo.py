"""Tiny models of ``transformers`` with every weight random, so that a wrong fold cannot hide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

BLOCK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {"vocab_size": 101, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
SEQUENCES = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
IMAGE = {"image_size": 16, "patch_size": 4}


@dataclass(frozen=True)
class Entry:
    """How to build a model, and what normfuse must make of it under ``torch.compile``.

    ``routes``: tokens choose experts, so one rounding may send a token elsewhere.
    """

    model: str
    config: dict[str, Any]
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    found: dict[str, int]
    after: dict[str, int]
    centrings: int = 0
    kwargs: dict[str, Any] = field(default_factory=dict)
    reasons: frozenset[str] = frozenset()
    float32_inside: bool = False
    routes: bool = False


def tokens() -> tuple[torch.Tensor, ...]:
    return (torch.randint(3, 100, (8, 8)),)


def pixels() -> tuple[torch.Tensor, ...]:
    return (torch.randn(8, 3, 16, 16),)


def spectrogram() -> tuple[torch.Tensor, ...]:
    return (torch.randn(8, 8, 16),)


def answered() -> dict[str, torch.Tensor]:
    """What a decoder has written so far."""
    return {"decoder_input_ids": torch.arange(64).reshape(8, 8) % 97 + 3}


def _layers(config: dict[str, Any], layers: int) -> dict[str, Any]:
    names = ("num_hidden_layers", "n_layer", "num_layers")
    return {k: (layers if k in names else v) for k, v in config.items()}


ZOO: dict[str, Entry] = {
    "gpt2": Entry(
        "GPT2LMHeadModel", {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32, **TEXT}, tokens,
        {"layer_norm": 5}, {"rms_norm": 5}, 1, {"use_cache": False},
    ),
    "opt": Entry(
        "OPTForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64,
         "word_embed_proj_dim": 32, **TEXT}, tokens,
        {"layer_norm": 5}, {"rms_norm": 5}, 1, {"use_cache": False},
    ),
    "gpt_neox": Entry(
        "GPTNeoXForCausalLM", {**BLOCK, **TEXT}, tokens,
        {"layer_norm": 5}, {"rms_norm": 5}, 1, {"use_cache": False}, float32_inside=True,
    ),
    "phi": Entry(
        "PhiForCausalLM", {**BLOCK, **TEXT}, tokens,
        {"layer_norm": 3}, {"rms_norm": 3}, 1, {"use_cache": False}, float32_inside=True,
    ),
    "falcon": Entry(
        "FalconForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **TEXT}, tokens,
        {"layer_norm": 3}, {"rms_norm": 3}, 1, {"use_cache": False}, float32_inside=True,
    ),
    "bloom": Entry(
        "BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 2, **TEXT}, tokens,
        {"layer_norm": 6}, {"layer_norm": 1, "rms_norm": 5}, 1, {"use_cache": False},
        reasons=frozenset({"table_copy"}), float32_inside=True,
    ),
    "olmo": Entry(
        "OlmoForCausalLM", {**BLOCK, **TEXT}, tokens,
        {"layer_norm": 5}, {"rms_norm": 5}, 1, {"use_cache": False}, float32_inside=True,
    ),
    "gptj": Entry(
        "GPTJForCausalLM",
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "rotary_dim": 8, **TEXT}, tokens,
        {"layer_norm": 3}, {"rms_norm": 3}, 1, {"use_cache": False}, float32_inside=True,
    ),
    "phimoe": Entry(
        "PhimoeForCausalLM",
        {**BLOCK, **TEXT, "num_key_value_heads": 2, "num_local_experts": 4,
         "experts_implementation": "batched_mm"},
        tokens, {"layer_norm": 5}, {"rms_norm": 5}, 1, {"use_cache": False}, float32_inside=True, routes=True,
    ),
    "beit": Entry(
        "BeitForImageClassification", {**BLOCK, **IMAGE, "use_mean_pooling": True}, pixels,
        {"layer_norm": 5}, {"rms_norm": 5},
    ),
    "whisper": Entry(
        "WhisperForConditionalGeneration",
        {**SEQUENCES, **TEXT, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16,
         "decoder_start_token_id": 3}, spectrogram,
        {"layer_norm": 12}, {"rms_norm": 12}, 2, {"use_cache": False, **answered()},
    ),
    "blenderbot": Entry(
        "BlenderbotForConditionalGeneration",
        {**SEQUENCES, **TEXT, "max_position_embeddings": 16, "decoder_start_token_id": 3}, tokens,
        {"layer_norm": 12}, {"rms_norm": 12}, 2, {"use_cache": False, **answered()},
    ),
    "clip_text": Entry(
        "CLIPTextModel", {**BLOCK, **TEXT, "max_position_embeddings": 16}, tokens,
        {"layer_norm": 5}, {"rms_norm": 5}, 1,
    ),
    "vit": Entry("ViTModel", {**BLOCK, **IMAGE}, pixels, {"layer_norm": 5}, {"rms_norm": 5}),
    "dinov2": Entry(
        "Dinov2Model",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **IMAGE}, pixels,
        {"layer_norm": 5}, {"rms_norm": 5},
    ),
    "cohere": Entry(
        "CohereForCausalLM", {**BLOCK, **TEXT}, tokens,
        {"layer_norm": 3}, {"rms_norm": 3}, 1, {"use_cache": False}, float32_inside=True,
    ),
    "clip_vision": Entry(
        "CLIPVisionModel", {**BLOCK, **IMAGE}, pixels,
        {"layer_norm": 6}, {"layer_norm": 5, "rms_norm": 1}, reasons=frozenset({"stream_is_output"}),
    ),
    "bert": Entry(
        "BertModel", {**BLOCK, "vocab_size": 101}, tokens,
        {"layer_norm": 5}, {"layer_norm": 5}, reasons=frozenset({"table_copy", "post_norm"}),
    ),
    "deberta": Entry(
        "DebertaModel", {**BLOCK, "vocab_size": 101}, tokens,
        {"layer_norm": 5}, {"layer_norm": 5}, reasons=frozenset({"table_copy", "post_norm", "raw_reader"}),
        float32_inside=True,
    ),
    "swin": Entry(
        "SwinModel",
        {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2,
         "image_size": 16, "patch_size": 2},
        pixels, {"layer_norm": 11}, {"layer_norm": 5, "rms_norm": 6}, reasons=frozenset({"channel_mix"}),
    ),
    "llama": Entry(
        "LlamaForCausalLM", {**BLOCK, **TEXT}, tokens,
        {"rms_norm": 5}, {"rms_norm": 5}, 0, {"use_cache": False},
        reasons=frozenset({"already_rms_norm"}), float32_inside=True,
    ),
    "gemma": Entry(
        "GemmaForCausalLM", {**BLOCK, **TEXT, "head_dim": 16, "num_key_value_heads": 2}, tokens,
        {"rms_norm": 5}, {"rms_norm": 5}, 0, {"use_cache": False},
        reasons=frozenset({"already_rms_norm"}), float32_inside=True,
    ),
    "gemma2": Entry(
        "Gemma2ForCausalLM", {**BLOCK, **TEXT, "head_dim": 16, "num_key_value_heads": 2}, tokens,
        {"rms_norm": 9}, {"rms_norm": 9}, 0, {"use_cache": False},
        reasons=frozenset({"already_rms_norm"}), float32_inside=True,
    ),
    "t5": Entry(
        "T5EncoderModel",
        {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "d_kv": 16, "vocab_size": 101}, tokens,
        {"rms_norm": 5}, {"rms_norm": 5}, reasons=frozenset({"already_rms_norm"}), float32_inside=True,
    ),
}  # fmt: skip


def build(
    name: str, dtype: torch.dtype = torch.float32, layers: int | None = None
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], dict[str, Any]]:
    """A model in evaluation mode with example inputs; the same ones at every call."""
    import transformers

    entry = ZOO[name]
    torch.manual_seed(0)
    cls = getattr(transformers, entry.model)
    config = entry.config if layers is None else _layers(entry.config, layers)
    model = cls(cls.config_class(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.1))
    inputs = tuple(i.to(dtype) if i.is_floating_point() else i for i in entry.inputs())
    return model.to(dtype), inputs, dict(entry.kwargs)
