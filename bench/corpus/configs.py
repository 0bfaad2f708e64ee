"""Tiny configurations of every model type: the same architecture with two layers and narrow widths."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["configs_of"]


def _names(text: str, value: int) -> dict[str, int]:
    return dict.fromkeys(text.split(), value)


WIDTHS = (
    _names(
        "hidden_size d_model n_embd embed_dim dim emb_dim encoder_hidden_size decoder_hidden_size "
        "word_embed_proj_dim embedding_size projection_dim encoder_dim proj_dim embed_proj_dim "
        "mamba_d_ssm mamba_intermediate_size",
        32,
    )
    | _names(
        "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner ffn_hidden_size hidden_dim "
        "d_inner moe_intermediate_size shared_expert_intermediate_size decoder_intermediate_size d_ffn "
        "ffn_size feed_forward_hidden_size intermediate_dim mlp_dim",
        64,
    )
    | _names(
        "head_dim d_kv d_head attention_head_dim kv_lora_rank qk_nope_head_dim v_head_dim qk_rope_head_dim "
        "swa_head_dim global_head_dim linear_key_head_dim linear_value_head_dim mamba_d_head mamba_head_dim",
        16,
    )
    | _names("q_lora_rank rotary_dim ssm_state_size mamba_d_state", 8)
)
DEPTHS = _names(
    "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers depth num_encoder_layers "
    "num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers num_hidden_layers_encoder "
    "num_block num_blocks",
    2,
)
HEADS = _names(
    "num_attention_heads n_head num_heads n_heads encoder_attention_heads num_key_value_heads "
    "decoder_attention_heads num_kv_heads decoder_num_attention_heads encoder_num_attention_heads "
    "decoder_num_key_value_heads n_head_kv linear_num_key_heads linear_num_value_heads "
    "encoder_num_key_value_heads mamba_n_heads mamba_num_heads swa_num_attention_heads "
    "swa_num_key_value_heads",
    2,
)
IMAGES = {"image_size": 32, "patch_size": 8}
TABLES = (
    _names("vocab_size text_vocab_size decoder_vocab_size vocab_size_per_layer_input", 120)
    | _names(
        "max_position_embeddings n_positions max_source_positions n_ctx max_target_positions "
        "max_sequence_length",
        64,
    )
    | _names("num_experts num_local_experts n_routed_experts moe_num_experts", 4)
    | _names("num_experts_per_tok moe_topk moe_k top_k n_groups mamba_n_groups type_vocab_size", 2)
    | _names("n_group topk_group expand mamba_expand pad_token_id", 1)
    | _names("bos_token_id decoder_start_token_id num_nextn_predict_layers num_kv_shared_layers", 0)
    | {"eos_token_id": 2, "num_queries": 5, "num_labels": 3}
)
RESNET = {
    "model_type": "resnet", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "embedding_size": 8,
    "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip

NARROW = WIDTHS | DEPTHS | HEADS | TABLES


def _wider(factor: int) -> dict[str, int]:
    """Two heads of 16 times ``factor``, for rotary tables of a fixed size."""
    return {name: value * factor if value in (16, 32) else value for name, value in NARROW.items()}


#: From the narrowest to the one that changes least; the first that runs is taken.
OVERLAYS: tuple[tuple[str, dict[str, int]], ...] = (
    ("narrow", NARROW | IMAGES),
    ("narrow, four heads", NARROW | dict.fromkeys(HEADS, 4) | IMAGES | {"head_dim": 8}),
    ("heads of 64", _wider(4)),
    ("heads of 128", _wider(8)),
    ("narrow, own heads", WIDTHS | DEPTHS | TABLES | IMAGES),
    ("narrow, own images", NARROW),
    ("short", DEPTHS | TABLES | IMAGES),
    ("short, own images", DEPTHS | TABLES),
    ("layers only", DEPTHS),
    ("as it is", {}),
)


def configs_of(model_type: str) -> Iterator[tuple[str, Any]]:
    """Configurations of a model type with the name of the recipe, the narrowest first."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    for name, overlay in OVERLAYS:
        with contextlib.suppress(Exception):
            arguments = _arguments(kind, overlay)
            yield name, _made(kind, arguments)


def _made(kind: Any, arguments: dict[str, Any]) -> Any:
    """A configuration with these arguments, or with all but one of them."""
    try:
        return kind(**arguments)
    except Exception as error:
        text = str(error)
        for name in sorted(arguments, key=lambda name: name not in text):
            with contextlib.suppress(Exception):
                return kind(**{k: v for k, v in arguments.items() if k != name})
        raise


def _arguments(kind: Any, overlay: Mapping[str, int]) -> dict[str, Any]:
    """Constructor arguments: those of the overlay that this configuration has, nested ones too."""
    default = kind()
    known = set(inspect.signature(kind.__init__).parameters) | set(vars(default))
    chosen: dict[str, Any] = {}
    for name, value in overlay.items():
        if name in known and _is_number(_held(default, name), name):
            chosen[name] = value
    if "hidden_size" in overlay:
        chosen = _by_ending(default, known) | chosen
    settable = set(inspect.signature(kind.__init__).parameters)
    stages = _stages(default, overlay) | _layer_kinds(default, overlay)
    chosen |= {name: value for name, value in stages.items() if name in settable}
    for name in kind.sub_configs:
        inner = getattr(default, name, None)
        if inner is not None and hasattr(inner, "model_type"):
            chosen[name] = _arguments(type(inner), overlay) | {"model_type": inner.model_type}
    if "backbone_config" in settable and _needs_timm(default):
        chosen |= {"backbone_config": RESNET, "backbone": None, "use_timm_backbone": False}
    return chosen


def _needs_timm(default: Any) -> bool:
    """Whether the backbone comes from a library that need not be installed."""
    inner = getattr(default, "backbone_config", None)
    return "timm" in str(getattr(inner, "model_type", "")) or bool(
        getattr(default, "use_timm_backbone", False)
    )


#: Further numbers by how their names end, for the narrow recipes.
_ENDINGS = {
    "vocab_size": 120, "intermediate_size": 64, "hidden_size": 32, "ffn_dim": 64, "hidden_layers": 2,
    "num_layers": 2, "n_layers": 2, "experts": 4, "position_embeddings": 64, "lora_rank": 8,
}  # fmt: skip
_WITHOUT_DEFAULT = ("vocab_size", "num_experts_per_tok", "num_key_value_heads")


def _held(default: Any, name: str) -> Any:
    """An attribute; None where it differs from layer to layer."""
    try:
        return getattr(default, name, None)
    except Exception:
        return None


def _by_ending(default: Any, known: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in known:
        value = next((v for ending, v in _ENDINGS.items() if name.endswith(ending)), None)
        held = _held(default, name)
        if value is not None and isinstance(held, int) and not isinstance(held, bool) and held > value:
            found[name] = value
    return found


def _is_number(value: Any, name: str) -> bool:
    if name in ("head_dim", "n_inner") and value is None:
        return False
    if value is None:
        return name.endswith("_token_id") or name in _WITHOUT_DEFAULT
    return isinstance(value, int) and not isinstance(value, bool)


def _stages(default: Any, overlay: Mapping[str, int]) -> dict[str, Any]:
    """Hierarchical models keep their widths and have one block in each stage."""
    if not overlay:
        return {}
    found = {}
    for name in ("depths", "num_blocks", "layers_per_stage", "stage_num_blocks"):
        value = getattr(default, name, None)
        if isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value):
            found[name] = [1] * len(value)
    return found


def _layer_kinds(default: Any, overlay: Mapping[str, int]) -> dict[str, Any]:
    """One layer of each kind, at least two, for models that mix kinds of layers."""
    if not overlay:
        return {}
    found: dict[str, Any] = {}
    depth = next((n for n in ("num_hidden_layers", "n_layer", "num_layers") if hasattr(default, n)), "")
    for name in ("layer_types", "mlp_layer_types", "layers_block_type", "attention_types", "block_types"):
        value = getattr(default, name, None)
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            continue
        kinds = list(dict.fromkeys(value))
        found[name] = kinds if len(kinds) > 1 else kinds * 2
    longest = max((len(v) for v in found.values()), default=0)
    if depth and longest:
        found = {k: (v * longest)[:longest] for k, v in found.items()}
        found[depth] = longest
    return found
