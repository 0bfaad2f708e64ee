"""Calls that take other ways through a class than the captured one: the loaded model computes the same."""

from __future__ import annotations

import json
from inspect import signature

import pytest
import torch
import transformers

import normfuse
from normfuse.checkpoint import other_class

pytestmark = pytest.mark.models

TEXT = {"vocab_size": 101, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 64, "is_decoder": True, **TEXT}
BOTH = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "max_position_embeddings": 64, "decoder_start_token_id": 1, **TEXT,
}  # fmt: skip
VIT = {
    "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 4, "encoder_stride": 4,
}  # fmt: skip
IDS = torch.arange(3, 14).repeat(2, 1)
GIVEN = torch.linspace(-1, 3, 2 * 5 * 32, dtype=torch.float64).view(2, 5, 32).sin() + 1
MASKED = {
    "pixel_values": GIVEN.new_ones(2, 3, 16, 16),
    "bool_masked_pos": torch.arange(32).view(2, 16) % 3 == 0,
}
#: Sums of up to 64 products of values around one, some hundred roundings deep.
CLOSE = 1e-11


def rewritten(name, sizes, folder):
    """The model, and its folder after the rewrite."""
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    made = model_class(model_class.config_class(**sizes)).to(torch.float64).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
    made.save_pretrained(folder / "in", max_shard_size="30KB")
    return made, normfuse.rewrite_folder(folder / "in", folder / "out")


def agree(made, folder, *calls):
    loaded = normfuse.load_checkpoint(folder / "out")
    of_class = type(made).from_pretrained(folder / "out", dtype=torch.float64).eval()
    with torch.no_grad():
        for kwargs in calls:
            expected = made(**kwargs)[-1 if "bool_masked_pos" in kwargs else 0]
            for candidate in (loaded, of_class):
                result = candidate(**kwargs)[-1 if "bool_masked_pos" in kwargs else 0]
                assert torch.allclose(result, expected, rtol=CLOSE, atol=CLOSE), [*kwargs]


def test_what_an_encoder_writes_is_seen(tmp_path):
    made, done = rewritten("GPT2LMHeadModel", GPT2 | {"add_cross_attention": True}, tmp_path)
    assert done.report.after == {"rms_norm": 4}
    agree(made, tmp_path, {"input_ids": IDS}, {"input_ids": IDS, "encoder_hidden_states": GIVEN})


@pytest.mark.parametrize(
    ("name", "sizes", "weight", "kwargs"),
    [
        ("ViTForMaskedImageModeling", VIT, "vit.embeddings.mask_token", MASKED),
        ("PegasusForCausalLM", BOTH, "model.decoder.layers.0.encoder_attn.k_proj.weight",
         {"input_ids": IDS, "encoder_hidden_states": GIVEN}),
    ],
)  # fmt: skip
def test_norms_stay_beside_weights_that_other_calls_may_use(name, sizes, weight, kwargs, tmp_path):
    made, done = rewritten(name, sizes, tmp_path)
    assert set(done.report.after) == {"layer_norm"}
    for site in done.report.sites:
        assert (site.action, site.refusal.code) == ("kept", "unseen_weight")
        assert weight in site.refusal.message
    agree(made, tmp_path, kwargs)


def test_every_part_takes_the_mean_from_embeddings_that_it_is_given(tmp_path):
    made, done = rewritten("PegasusForConditionalGeneration", BOTH, tmp_path)
    assert set(done.report.after) == {"rms_norm"}
    of_decoder = {"input_ids": IDS, "decoder_inputs_embeds": GIVEN}
    agree(made, tmp_path, of_decoder, {"inputs_embeds": GIVEN, "decoder_input_ids": IDS})


def test_embeddings_for_the_model_below_a_head_and_without_a_name(tmp_path):
    made, _ = rewritten("GPT2LMHeadModel", GPT2, tmp_path)
    loaded = normfuse.load_checkpoint(tmp_path / "out")
    before = [None] * [*signature(made.forward).parameters].index("inputs_embeds")
    with torch.no_grad():
        for one, other in (
            (made(*before, GIVEN), loaded(*before, GIVEN)),
            (made.transformer(inputs_embeds=GIVEN), loaded.transformer(inputs_embeds=GIVEN)),
        ):
            assert torch.allclose(one[0], other[0], rtol=CLOSE, atol=CLOSE)


def test_a_record_from_before_says_only_that_the_model_takes_embeddings(tmp_path):
    made, _ = rewritten("GPT2LMHeadModel", GPT2, tmp_path)
    file = tmp_path / "out" / "normfuse.json"
    held = json.loads(file.read_text())
    assert held.pop("centred_inputs") == ["", "transformer"]
    file.write_text(json.dumps(held | {"centres_input": True}))
    agree(made, tmp_path, {"inputs_embeds": GIVEN})


def test_a_model_with_unseen_weights_is_none_of_another_class(tmp_path, monkeypatch):
    sizes = {
        "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, **TEXT
    }  # fmt: skip
    transformers.OlmoForCausalLM(transformers.OlmoConfig(**sizes)).save_pretrained(tmp_path / "in")
    monkeypatch.setattr(other_class, "unseen_of", lambda case, found: {"lm_head.extra": (32,)})
    with pytest.raises(normfuse.InputError, match=r"other calls may use lm_head\.extra"):
        normfuse.rewrite_folder(tmp_path / "in", tmp_path / "out", architecture="LlamaForCausalLM")
