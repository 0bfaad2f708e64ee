"""Checkpoint folders of tiny models with random weights, in several files."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import torch
import transformers
from torch import nn

#: Classes by name, with configurations; every one has two layers of width 32.
SIZES = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 101, "n_positions": 64},
    ),
    "opt": (
        "OPTForCausalLM",
        {
            "num_hidden_layers": 2, "hidden_size": 32, "ffn_dim": 64, "num_attention_heads": 2,
            "vocab_size": 101, "max_position_embeddings": 64, "word_embed_proj_dim": 32,
        },
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {
            "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
            "vocab_size": 101,
        },
    ),
    "llama": (
        "LlamaForCausalLM",
        {
            "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
            "vocab_size": 101,
        },
    ),
    "vit": (
        "ViTForImageClassification",
        {
            "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
            "image_size": 16, "patch_size": 4,
        },
    ),
    "olmo": (
        "OlmoForCausalLM",
        {
            "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
            "vocab_size": 101,
        },
    ),
    "bert": (
        "BertModel",
        {
            "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
            "vocab_size": 101,
        },
    ),
}  # fmt: skip


@cache
def model(name: str, dtype: torch.dtype = torch.float32, **options: object) -> nn.Module:
    """The model, whose norms have weights and biases that do something."""
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    class_name, sizes = SIZES[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    config = model_class.config_class(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options)
    made = model_class(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * (torch.rand_like(parameter) - 0.5))
    return made


def saved(
    path: Path, name: str, dtype: torch.dtype = torch.float32, size: str = "20KB", **options: object
) -> Path:
    """A folder with the model, in files of at most this size."""
    transformers.utils.logging.disable_progress_bar()
    model(name, dtype, **options).save_pretrained(path, max_shard_size=size)
    (path / "tokenizer.json").write_text("{}")
    return path


def inputs(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Inputs of another batch and length than any that a model is captured with."""
    torch.manual_seed(3)
    if name == "vit":
        return {"pixel_values": torch.randn(3, 3, 16, 16, dtype=dtype)}
    return {"input_ids": torch.randint(3, 100, (3, 11))}


def outputs(made: nn.Module, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with torch.no_grad():
        return made(**inputs(name, dtype))[0]


def plain(path: Path, name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The folder, as the class itself loads it."""
    model_class = getattr(transformers, SIZES[name][0])
    return model_class.from_pretrained(path, dtype=dtype).eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
