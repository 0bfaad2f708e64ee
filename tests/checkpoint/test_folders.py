"""Folders are rewritten into folders whose models compute the same, with their norms replaced."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import normfuse
from normfuse.checkpoint.modules import Norm
from normfuse.checkpoint.source import Folder
from normfuse.cli.app import app
from tests.checkpoint.folders import SIZES, contents, inputs, model, outputs, plain, saved
from tests.page.structure import checked

pytestmark = pytest.mark.models

NAMES = ("gpt2", "opt", "gpt_neox", "llama", "vit")
#: What float64 may differ by: sums of 32 to 64 products of values around one, some hundred roundings deep.
CLOSE = 1e-11
TIED = ("gpt2", "opt")
#: What is compared in float32 whenever tests are run; the others take the same ways.
QUICK = ("gpt2", "llama")
#: Llama computes its norms in float32 whatever its weights are, so that a float64 one keeps them as they are.
_BUT_LLAMA = tuple(name for name in NAMES if name != "llama")


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory):
    """The folder of a model and what it was rewritten to; each once."""
    known = {}

    def make(name, dtype=torch.float32, **options):
        key = (name, dtype, *options.items())
        if key not in known:
            folder = tmp_path_factory.mktemp(name)
            make.before[folder] = contents(saved(folder / "in", name, dtype))
            for file in (folder / "in").iterdir():
                file.chmod(0o444)
            known[key] = folder, normfuse.rewrite_folder(folder / "in", folder / "out", **options)
        return known[key]

    make.before = {}
    return make


@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.slow), *_BUT_LLAMA])
def test_float64_agrees_in_the_new_form_and_in_the_class_itself(name, rewritten):
    folder, done = rewritten(name, torch.float64)
    expected = outputs(model(name, torch.float64), name, torch.float64)
    loaded = normfuse.load_checkpoint(folder / "out")
    assert type(loaded).__name__ == SIZES[name][0]
    assert torch.allclose(outputs(loaded, name, torch.float64), expected, rtol=CLOSE, atol=CLOSE)
    assert done.is_plain
    of_class = plain(folder / "out", name, torch.float64)
    assert torch.allclose(outputs(of_class, name, torch.float64), expected, rtol=CLOSE, atol=CLOSE)
    assert done.report.after == {"rms_norm": 5}


@pytest.mark.rounding
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES]
)
def test_float32_is_as_close_to_float64_as_the_original(name, rewritten):
    folder, _ = rewritten(name)
    loaded = normfuse.load_checkpoint(folder / "out")
    kwargs = inputs(name) | ({} if name == "vit" else {"use_cache": False})
    found = normfuse.verify(model(name), loaded, (), kwargs)
    assert found.ok, str(found)
    assert found.error_ratio <= 1.5


@pytest.mark.parametrize("name", _BUT_LLAMA)
def test_norms_are_modules_of_their_new_kind(name, rewritten):
    folder, _ = rewritten(name, torch.float64)
    loaded = normfuse.load_checkpoint(folder / "out")
    norms = [m for m in loaded.modules() if isinstance(m, Norm)]
    assert len(norms) == 5
    assert {norm.kind for norm in norms} == {"rms_norm"}
    assert not any(isinstance(m, nn.LayerNorm) for m in loaded.modules())


@pytest.mark.parametrize("name", TIED)
def test_what_is_tied_stays_tied_and_is_not_changed(name, rewritten):
    folder, _ = rewritten(name, torch.float64)
    loaded, original = normfuse.load_checkpoint(folder / "out"), model(name, torch.float64)
    table = loaded.get_input_embeddings().weight
    assert loaded.get_output_embeddings().weight is table
    assert torch.equal(table, original.get_input_embeddings().weight)
    read = torch.tensor([[5, 6]])
    assert loaded.get_input_embeddings()(read).mean(-1).abs().max() < 1e-15
    assert original.get_input_embeddings()(read).mean(-1).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_embeddings_that_are_given_lose_their_mean(name, rewritten):
    """Of a tied table, which is centred at each lookup, and of one that was centred in the file."""
    folder, _ = rewritten(name, torch.float64)
    loaded, original = normfuse.load_checkpoint(folder / "out"), model(name, torch.float64)
    given = torch.randn(2, 5, 32, dtype=torch.float64) + 1
    with torch.no_grad():
        expected, found = (m(inputs_embeds=given).logits for m in (original, loaded))
    assert torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE)


def test_text_is_generated_alike_with_a_cache(rewritten):
    folder, _ = rewritten("gpt2", torch.float64)
    loaded = normfuse.load_checkpoint(folder / "out")
    start = torch.tensor([[5, 17, 33]])
    found, expected = (
        m.generate(start, max_new_tokens=12, do_sample=False) for m in (loaded, model("gpt2", torch.float64))
    )
    assert torch.equal(found, expected)
    assert loaded.generation_config.eos_token_id == 2


@pytest.mark.parametrize("name", _BUT_LLAMA)
def test_files_keep_their_layout_and_the_input_its_bytes(name, rewritten):
    folder, done = rewritten(name, torch.float64)
    given, made = folder / "in", folder / "out"
    assert {f.name for f in made.iterdir()} == {f.name for f in given.iterdir()} | {"normfuse.json"}
    record = json.loads((made / "normfuse.json").read_text())
    for file in given.glob("*.safetensors"):
        before, after = load_file(file), load_file(made / file.name)
        assert list(before) == list(after)
        for tensor, value in before.items():
            changed = tensor in record["changed"] or tensor in record["without_effect"]
            assert torch.equal(value, after[tensor]) == (not changed), tensor
    indexes = [json.loads((f / "model.safetensors.index.json").read_text()) for f in (given, made)]
    assert indexes[0] == indexes[1]
    assert record["loads_in_transformers"] is done.is_plain is True
    for copied in ("config.json", "tokenizer.json"):
        assert (made / copied).read_bytes() == (given / copied).read_bytes()


def test_a_folder_is_explained_and_only_its_vectors_are_read(rewritten, tmp_path, monkeypatch):
    folder, done = rewritten("gpt2", torch.float64)
    read, original = set(), Folder.tensor

    def tensor(self, name):
        read.add(len(self.stored[name].shape))
        return original(self, name)

    monkeypatch.setattr(Folder, "tensor", tensor)
    report = tmp_path / "report.json"
    shown = CliRunner().invoke(app, ["explain", str(folder / "in"), "--json", str(report)])
    assert shown.exit_code == 0, shown.output
    assert "found 5 layer_norm; now 5 rms_norm" in shown.output
    assert json.loads(report.read_text())["after"] == done.report.after
    assert read == {1}
    assert contents(folder / "in") == rewritten.before[folder]


@pytest.mark.parametrize("command", ["rewrite", "explain"])
def test_a_page_tells_of_all_norms_of_a_folder(command, rewritten, tmp_path):
    folder, done = rewritten("gpt2", torch.float64)
    page, given = tmp_path / "page.html", str(folder / "in")
    words = ["-o", str(tmp_path / "out")] if command == "rewrite" else []
    shown = CliRunner().invoke(app, [command, given, *words, "--html", str(page)])
    assert shown.exit_code == 0, shown.output
    found = checked(page.read_text(encoding="utf-8"))
    assert given in found.text
    assert ("NOT verified by running the models" in found.text) is (command == "rewrite")
    assert "All 5 norms are in a cheaper form now: 5 layer_norm became rms_norm" in found.text
    for site in done.report.sites:
        assert site.module in found.text or "transformer.h.{0-1}." in found.text
    links = [held.get("class") or "" for tag, held in found.elements if tag == "a"]
    ticks = [name for name in links if name.startswith("tick")]
    assert ticks == [f"tick {site.action}" for site in done.report.sites]
    assert contents(folder / "in") == rewritten.before[folder]


def test_the_input_is_not_touched(rewritten):
    folder, _ = rewritten("opt", torch.float64)
    assert contents(folder / "in") == rewritten.before[folder]
    assert sorted(f.name for f in folder.iterdir()) == ["in", "out"]


def test_a_new_bias_is_made_when_it_is_asked_for(rewritten):
    """The head of GPT-NeoX has no bias, and the last norm has one."""
    folder, done = rewritten("gpt_neox", torch.float64, new_biases=True)
    assert not done.is_plain
    loaded = normfuse.load_checkpoint(folder / "out")
    assert loaded.get_output_embeddings().bias.abs().max() > 1e-2
    expected = outputs(model("gpt_neox", torch.float64), "gpt_neox", torch.float64)
    assert torch.allclose(outputs(loaded, "gpt_neox", torch.float64), expected, rtol=CLOSE, atol=CLOSE)
    with pytest.raises(OSError, match="no file named"):
        plain(folder / "out", "gpt_neox", torch.float64)
    with pytest.raises(normfuse.InputError, match="has biases where its class has none"):
        loaded.save_pretrained(folder / "again")
    assert not (folder / "again").exists()


def test_without_new_biases_the_norm_keeps_its_own(rewritten):
    folder, done = rewritten("gpt_neox", torch.float64)
    site = next(s for s in done.report.sites if s.module == "gpt_neox.final_layer_norm")
    assert site.refusals["fold_scale"].code == "new_bias"
    assert normfuse.load_checkpoint(folder / "out").gpt_neox.final_layer_norm.bias is not None


@pytest.mark.slow
def test_a_single_file_stays_one(tmp_path):
    given = saved(tmp_path / "in", "gpt2", torch.float64, size="1GB")
    normfuse.rewrite_folder(given, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not list((tmp_path / "out").glob("*.index.json"))
    found = outputs(normfuse.load_checkpoint(tmp_path / "out"), "gpt2")
    assert torch.allclose(found, outputs(model("gpt2", torch.float64), "gpt2"), rtol=CLOSE, atol=CLOSE)


def test_a_checkpoint_of_the_model_without_its_head_has_other_names(tmp_path):
    """As the files of GPT-2 on the hub: without the prefix that the class with a head has."""
    original = model("gpt2", torch.float64)
    original.transformer.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    (tmp_path / "in" / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    done = normfuse.rewrite_folder(tmp_path / "in", tmp_path / "out")
    assert done.report.after == {"rms_norm": 5}
    found = outputs(normfuse.load_checkpoint(tmp_path / "out"), "gpt2")
    assert torch.allclose(found, outputs(original, "gpt2"), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("sharded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_files_of_torch_save_become_safetensors(sharded, tmp_path):
    """A state dict holds a tied tensor under both of its names."""
    original, given = model("gpt2", torch.float64), tmp_path / "in"
    given.mkdir()
    original.config.save_pretrained(given)
    config = json.loads((given / "config.json").read_text())
    named = {"architectures": ["GPT2LMHeadModel"], "dtype": "float64"}
    (given / "config.json").write_text(json.dumps({**config, **named}))
    state = original.state_dict()
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    places = {name: files[i % 2] if sharded else "pytorch_model.bin" for i, name in enumerate(state)}
    for file in set(places.values()):
        torch.save({n: state[n] for n, place in places.items() if place == file}, given / file)
    if sharded:
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (given / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    normfuse.rewrite_folder(given, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin*"))
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file() == sharded
    loaded = normfuse.load_checkpoint(tmp_path / "out")
    assert torch.allclose(outputs(loaded, "gpt2"), outputs(original, "gpt2"), rtol=CLOSE, atol=CLOSE)
    of_class = plain(tmp_path / "out", "gpt2", torch.float64)
    assert torch.allclose(outputs(of_class, "gpt2"), outputs(original, "gpt2"), rtol=CLOSE, atol=CLOSE)


@pytest.mark.rounding
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_half_precision_is_as_close_as_the_original(dtype, tmp_path):
    given = saved(tmp_path / "in", "opt", dtype)
    done = normfuse.rewrite_folder(given, tmp_path / "out")
    assert done.report.after == {"rms_norm": 5}
    loaded = normfuse.load_checkpoint(tmp_path / "out")
    assert loaded.dtype == dtype
    found = normfuse.verify(model("opt", dtype), loaded, (), {**inputs("opt"), "use_cache": False})
    assert found.ok, str(found)


def test_norms_that_cannot_be_converted_stay_and_say_why(tmp_path):
    """BERT writes what its norms return back into the stream: only the first one reads what weights write."""
    given = saved(tmp_path / "in", "bert", torch.float64)
    done = normfuse.rewrite_folder(given, tmp_path / "out", only=["recentre"])
    assert done.report.after == {"rms_norm": 1, "layer_norm": 2}
    assert [site.refusal is None for site in done.report.sites] == [True, False, False]
    found = outputs(normfuse.load_checkpoint(tmp_path / "out"), "bert")
    assert torch.allclose(found, outputs(model("bert", torch.float64), "bert"), rtol=CLOSE, atol=CLOSE)


@pytest.mark.slow
def test_norms_without_parameters_are_replaced_too(tmp_path):
    """OLMo computes its norms in float32 whatever its weights are, so a float64 model is no yardstick."""
    given = saved(tmp_path / "in", "olmo")
    done = normfuse.rewrite_folder(given, tmp_path / "out")
    assert done.report.after == {"rms_norm": 5}
    found = normfuse.verify(
        model("olmo"), normfuse.load_checkpoint(tmp_path / "out"), (), {**inputs("olmo"), "use_cache": False}
    )
    assert found.ok, str(found)


def test_rules_can_be_chosen(tmp_path):
    given = saved(tmp_path / "in", "gpt2")
    done = normfuse.rewrite_folder(given, tmp_path / "out", only=["fold_scale"], target="layer_norm")
    assert done.report.after == {"layer_norm": 5}
    kept = normfuse.load_checkpoint(tmp_path / "out").transformer.h[0].ln_1
    assert (kept.kind, kept.weight, kept.bias) == ("layer_norm", None, None)
    with pytest.raises(normfuse.ExpectationError, match="expected 4 rms_norm"):
        normfuse.rewrite_folder(given, tmp_path / "other", expect={"rms_norm": 4})
    assert not (tmp_path / "other").exists()


def test_the_installed_class_is_what_is_loaded(rewritten):
    folder, _ = rewritten("llama")
    assert type(normfuse.load_checkpoint(folder / "out")) is transformers.LlamaForCausalLM
