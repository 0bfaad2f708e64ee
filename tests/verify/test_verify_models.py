"""verify on small models of transformers: dataclass outputs, caches, bfloat16, tied weights."""

from __future__ import annotations

import copy
import inspect
from functools import cache

import pytest
import torch
from torch import nn

from normfuse.verify import verify

pytestmark = pytest.mark.rounding

transformers = pytest.importorskip("transformers")

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SIZES, "num_key_value_heads": 2, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}


def _llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).to(torch.bfloat16)


def _gpt2() -> nn.Module:
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 16, "vocab_size": 64}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=1))


def _vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=16, patch_size=8))


def _mixture() -> nn.Module:
    config = transformers.Qwen3MoeConfig(
        **TEXT, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    )
    return transformers.Qwen3MoeForCausalLM(config)


@cache
def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(0)
    model = {"llama": _llama, "gpt2": _gpt2, "vit": _vit, "mixture": _mixture}[name]().eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return model, (images if name == "vit" else torch.arange(3, 11)[None],)


#: ``past_key_values`` before transformers 5.24.
CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(transformers.LlamaForCausalLM.forward).parameters
)
NAMES = ["llama", "gpt2", "vit", "mixture"]


@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_equivalent_to_its_copy(name: str, grads: bool) -> None:
    model, args = build(name)
    result = verify(model, copy.deepcopy(model), args, grads=grads)
    assert result.ok, result
    outputs = {leaf.path: leaf for leaf in result.leaves if not leaf.path.startswith("grad:")}
    assert all(leaf.judged for leaf in outputs.values())
    if name == "vit":
        assert set(outputs) == {"output.last_hidden_state", "output.pooler_output"}
    else:
        assert {"output.logits", f"output.{CACHE}.layers[1].keys"} <= set(outputs)
    eps = torch.finfo(next(model.parameters()).dtype).eps
    assert 0 < result.leaves[0].max_rel_error < 16 * eps


@pytest.mark.parametrize("name", ["gpt2", "vit", "mixture"])
def test_one_norm_weight_changed_by_a_thousandth_is_found(name: str) -> None:
    model, args = build(name)
    other = copy.deepcopy(model)
    norm = next(p for n, p in other.named_parameters() if "norm" in n or "ln_1" in n)
    with torch.no_grad():
        norm[0] *= 1.001
    result = verify(model, other, args)
    assert not result.ok
    assert result.error_ratio > 5


def test_a_wrong_rotary_base_in_bfloat16_is_found_in_the_cache_too() -> None:
    model, args = build("llama")
    other = copy.deepcopy(model)
    other.model.rotary_emb.inv_freq.mul_(1.1)
    failed = {leaf.path for leaf in verify(model, other, args).leaves if not leaf.ok}
    assert f"output.{CACHE}.layers[0].keys" in failed
    assert f"output.{CACHE}.layers[0].values" not in failed


def test_plain_and_tuple_outputs() -> None:
    model, args = build("gpt2")
    kwargs = {"return_dict": False, "use_cache": False}
    result = verify(model, copy.deepcopy(model), args, kwargs)
    assert [leaf.path for leaf in result.leaves] == ["output[0]"]
    assert result.ok


def test_a_cache_among_the_arguments_is_not_disturbed() -> None:
    model, (ids,) = build("gpt2")
    with torch.no_grad():
        cache = getattr(model(ids[:, :4]), CACHE)
    before = cache.layers[0].keys.clone()
    result = verify(model, copy.deepcopy(model), (ids[:, 4:],), {CACHE: cache})
    assert result.ok
    assert torch.equal(cache.layers[0].keys, before)
    keys = next(leaf for leaf in result.leaves if leaf.path == f"output.{CACHE}.layers[0].keys")
    assert keys.shape[2] == 8


def test_dropout_in_training() -> None:
    sizes = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 16, "vocab_size": 64}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=1, attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config).train()
    result = verify(model, copy.deepcopy(model), (torch.arange(8)[None],), grads=True)
    assert result.ok
    assert next(leaf for leaf in result.leaves if leaf.path == "output.logits").judged
