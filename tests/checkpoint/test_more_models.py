"""Other architectures: merged experts, a table read twice, several streams, weights read as 1 + w."""

from __future__ import annotations

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
    given = {"input_ids": torch.randint(3, 100, (3, 11)), "use_cache": False}
    return given | (
        {"decoder_input_ids": torch.randint(3, 100, (3, 5))} if made.config.is_encoder_decoder else {}
    )


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_the_same_in_both_forms(name, tmp_path):
    sizes, after = MODELS[name]
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    text = {} if "image_size" in sizes else {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    made = model_class(model_class.config_class(**sizes, **text)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * (torch.rand_like(parameter) - 0.5))
    made.save_pretrained(tmp_path / "in", max_shard_size="30KB")
    done = normfuse.rewrite_folder(tmp_path / "in", tmp_path / "out")
    assert done.report.after == after
    loaded, of_class = (
        normfuse.load_checkpoint(tmp_path / "out"),
        model_class.from_pretrained(tmp_path / "out"),
    )
    for candidate in (loaded, of_class.eval()):
        found = normfuse.verify(made, candidate, (), inputs(made))
        assert found.ok, str(found)
