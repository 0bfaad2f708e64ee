"""Other architectures: merged experts, a table read twice, several streams, weights read as 1 + w."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
import transformers

import normfuse

pytestmark = [pytest.mark.models, pytest.mark.slow]

SMALL = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "vocab_size": 101,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
#: Classes with sizes, and the kinds of norms that remain.
MODELS = {
    "Qwen2ForCausalLM": (GROUPED, {"rms_norm": 5}),
    "StableLmForCausalLM": (GROUPED, {"rms_norm": 5}),
    "GPTJForCausalLM": (
        {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 101, "n_positions": 64, "rotary_dim": 8},
        {"rms_norm": 3},
    ),
    "MptForCausalLM": (
        {"d_model": 32, "n_heads": 2, "n_layers": 2, "vocab_size": 101, "max_seq_len": 64},
        {"rms_norm": 5},
    ),
    "BertForSequenceClassification": (SMALL, {"rms_norm": 1, "layer_norm": 4}),
    "WhisperForConditionalGeneration": (
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "vocab_size": 101,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 32,
            "decoder_start_token_id": 1,
        },
        {"layer_norm": 12},
    ),
    "MixtralForCausalLM": ({**GROUPED, "num_local_experts": 4}, {"rms_norm": 5}),
    "GemmaForCausalLM": ({**GROUPED, "head_dim": 16}, {"rms_norm": 5}),
    "FalconForCausalLM": (
        {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 101},
        {"rms_norm": 3},
    ),
    "CohereForCausalLM": (GROUPED, {"rms_norm": 3}),
    "PhiForCausalLM": (SMALL, {"rms_norm": 3}),
    "BloomForCausalLM": (
        {"n_layer": 2, "hidden_size": 32, "n_head": 2, "vocab_size": 101},
        {"layer_norm": 6},
    ),
    "T5ForConditionalGeneration": (
        {"num_layers": 2, "d_model": 32, "d_ff": 64, "num_heads": 2, "d_kv": 16, "vocab_size": 101},
        {"rms_norm": 12},
    ),
    "MambaForCausalLM": (
        {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 101, "state_size": 4},
        {"rms_norm": 3},
    ),
    "SwinForImageClassification": (
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        {"rms_norm": 4, "layer_norm": 3},
    ),
}


def inputs(made):
    torch.manual_seed(1)
    if made.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(3, 3, 32, 32)}
    dtype, is_speech = made.dtype, made.main_input_name == "input_features"
    ids = torch.randint(3, 100, (3, 11))
    given = {"input_features": torch.randn(3, 8, 40, dtype=dtype)} if is_speech else {"input_ids": ids}
    if made.config.is_encoder_decoder:
        given["decoder_input_ids"] = torch.randint(3, 100, (3, 5))
    return given | ({"use_cache": False} if "use_cache" in signature(made.forward).parameters else {})


def saved(name, folder, dtype):
    """A sharded folder, and the model that it was saved from."""
    sizes, _ = MODELS[name]
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    text = {} if "image_size" in sizes else {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    made = model_class(model_class.config_class(**sizes, **text)).to(dtype).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * (torch.rand_like(parameter) - 0.5))
    made.save_pretrained(folder, max_shard_size="30KB")
    return made


#: Whose norms compute in the dtype of the weights, so that float64 tells the forms apart from rounding.
IN_FLOAT64 = (
    "BertForSequenceClassification", "BloomForCausalLM", "CohereForCausalLM", "FalconForCausalLM",
    "GPTJForCausalLM", "MptForCausalLM", "PhiForCausalLM", "StableLmForCausalLM",
    "WhisperForConditionalGeneration",
)  # fmt: skip


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_float64_agrees_in_both_forms(name, tmp_path):
    made = saved(name, tmp_path / "in", torch.float64)
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    done = normfuse.rewrite_folder(tmp_path / "in", tmp_path / "out")
    assert done.is_plain
    given = inputs(made)
    of_class = type(made).from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    with torch.no_grad():
        expected = made(**given)[0]
        for candidate in (normfuse.load_checkpoint(tmp_path / "out"), of_class):
            assert torch.allclose(candidate(**given)[0], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_the_same_in_both_forms(name, tmp_path):
    made = saved(name, tmp_path / "in", torch.float32)
    done = normfuse.rewrite_folder(tmp_path / "in", tmp_path / "out")
    assert done.report.after == MODELS[name][1]
    loaded = normfuse.load_checkpoint(tmp_path / "out")
    of_class = type(made).from_pretrained(tmp_path / "out")
    for candidate in (loaded, of_class.eval()):
        found = normfuse.verify(made, candidate, (), inputs(made))
        assert found.ok, str(found)
