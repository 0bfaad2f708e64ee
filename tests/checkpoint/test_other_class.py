"""A rewritten model that is one of another class is written as that class."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import normfuse
from normfuse.capture.exported import export_model, input_values, program_of
from normfuse.checkpoint.matching import Match, matched
from normfuse.checkpoint.outline import Outline, Ref, Step
from normfuse.cli.app import app
from normfuse.ir.calls import aten
from normfuse.ir.spec import NormSpec
from normfuse.verify.oracle import run_wide
from normfuse.verify.widen import widen
from tests.checkpoint.folders import inputs, saved

pytestmark = pytest.mark.models

LINEAR, ADD = str(aten.linear.default), str(aten.add.Tensor)
NORM = NormSpec("rms_norm", (-1,), 1e-5, *[torch.float32] * 4)


def graph(*steps, result=None):
    results = (Ref(len(steps) - 1 if result is None else result),)
    return Outline(tuple(Step(what, operands, f"the {what}") for what, operands in steps), results)


def norm(spec, source, *, scale=None, shift=None):
    return spec, (source, None, scale, shift, None, None, None)


def test_steps_may_come_in_another_order():
    a, b = (LINEAR, (Ref("x"), Ref("a"), None)), (LINEAR, (Ref("x"), Ref("b"), None))
    ours = graph(a, b, (ADD, (Ref(0), Ref(1), 1)))
    theirs = graph(b, a, (ADD, (Ref(1), Ref(0), 1)))
    assert matched(ours, theirs) == Match({"x": "x", "a": "a", "b": "b"})
    assert isinstance(matched(ours, graph(a, b, (ADD, (Ref(1), Ref(0), 1)))), Match)  # a and b change places
    both = graph(a, a, (ADD, (Ref(0), Ref(1), 1)))
    assert isinstance(matched(ours, both), str)


def test_weights_that_are_not_there_do_nothing():
    offset = replace(NORM, has_scale=True, weight_offset=1.0)
    plain, scaled = graph(norm(NORM, Ref("x"))), replace(NORM, has_scale=True, has_shift=True)
    found = matched(plain, graph(norm(scaled, Ref("x"), scale=Ref("w"), shift=Ref("b"))))
    assert found == Match({"x": "x"}, {"w": 1.0, "b": 0.0})
    assert matched(plain, graph(norm(offset, Ref("x"), scale=Ref("w")))).neutral == {"w": 0.0}
    layer = graph((LINEAR, (Ref("x"), Ref("w"), None)))
    assert matched(layer, graph((LINEAR, (Ref("x"), Ref("w"), Ref("b"))))).neutral == {"b": 0.0}


RMS = norm(NORM, Ref("x"))
SCALED = norm(replace(NORM, has_scale=True), Ref("x"), scale=Ref("w"))
DIFFERENT = {
    "eps": (graph(RMS), graph(norm(replace(NORM, eps=1e-6), Ref("x")))),
    "kind": (graph(RMS), graph(norm(replace(NORM, kind="layer_norm"), Ref("x")))),
    "compute dtype": (graph(RMS), graph(norm(replace(NORM, compute_dtype=torch.float64), Ref("x")))),
    "no place for a weight": (graph(SCALED), graph(RMS)),
    "no place for a bias": (
        graph((LINEAR, (Ref("x"), Ref("w"), Ref("b")))),
        graph((LINEAR, (Ref("x"), Ref("w"), None))),
    ),
    "an extra operand of something else": (
        graph((ADD, (Ref("x"), None))),
        graph((ADD, (Ref("x"), Ref("b")))),
    ),
    "one weight for two": (
        graph((LINEAR, (Ref("x"), Ref("a"), None)), (LINEAR, (Ref(0), Ref("b"), None))),
        graph((LINEAR, (Ref("x"), Ref("a"), None)), (LINEAR, (Ref(0), Ref("a"), None))),
    ),
    "a weight that is there and is not": (
        graph((LINEAR, (Ref("x"), Ref("a"), None)), (LINEAR, (Ref(0), Ref("b"), Ref("c")))),
        graph((LINEAR, (Ref("x"), Ref("a"), Ref("d"))), (LINEAR, (Ref(0), Ref("b"), Ref("d")))),
    ),
    "a number": (graph((ADD, (Ref("x"), 1))), graph((ADD, (Ref("x"), 1.0)))),
    "in place": (graph(("aten.add_.Tensor", (Ref("x"), 1))), graph(("aten.add_.Tensor", (Ref("x"), 1)))),
    "another result": (graph(RMS), graph(RMS, result="x")),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_differs_is_said(case):
    assert isinstance(matched(*DIFFERENT[case]), str)


@pytest.fixture(scope="module", params=[pytest.param(False, id="apart", marks=pytest.mark.slow), True])
def llama(request, tmp_path_factory):
    """An OLMo that was written as a Llama: the original, the folder, and what was returned.

    Its entries are multiples of 2**-9, so that means over 32 of them are exact in float32.
    """
    folder = tmp_path_factory.mktemp("olmo")
    tied = {"tie_word_embeddings": request.param}
    saved(folder / "in", "olmo", **tied)
    for file in (folder / "in").glob("*.safetensors"):
        held = {name: torch.round(value * 512) / 512 for name, value in load_file(file).items()}
        save_file(held, file, {"format": "pt"})
    done = normfuse.rewrite_folder(folder / "in", folder / "out", architecture="LlamaForCausalLM")
    original = transformers.OlmoForCausalLM.from_pretrained(folder / "in").eval()
    return original, folder / "out", done


def in_float64(made, given):
    """What a model computes in float64 throughout, its norms too."""
    exported = export_model(made, (), given, None)
    program = program_of(exported)
    return run_wide(widen(program.gm), input_values(exported, program))[0]


def test_olmo_is_written_as_a_llama(llama):
    original, folder, done = llama
    config = json.loads((folder / "config.json").read_text())
    said = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5}
    assert config | said == config
    assert (config["tie_word_embeddings"], done.architecture) == (False, "LlamaForCausalLM")
    assert done.report.after == {"rms_norm": 5}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is transformers.LlamaForCausalLM
    assert torch.equal(loaded.model.norm.weight, torch.ones(32))
    assert loaded.model.embed_tokens.weight.mean(-1).abs().max() < 1e-7
    assert torch.equal(loaded.lm_head.weight, original.lm_head.weight)
    assert type(normfuse.load_checkpoint(folder)) is transformers.LlamaForCausalLM


def test_it_computes_the_same_in_float64_with_and_without_a_mask(llama):
    original, folder, _ = llama
    loaded = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, :4] = 0
    for more in ({}, {"attention_mask": mask}):
        given = {**inputs("olmo"), "use_cache": False, **more}
        found, expected = in_float64(loaded, given), in_float64(original, given)
        assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_text_is_generated_alike(llama):
    original, folder, _ = llama
    loaded = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    start = torch.tensor([[5, 17, 33]])
    found, expected = (m.generate(start, max_new_tokens=12, do_sample=False) for m in (loaded, original))
    assert torch.equal(found, expected)


REFUSED = {
    "clip_qkv": ("olmo", torch.float32, {"clip_qkv": 8.0}, "LlamaForCausalLM", "clamp in model.layers"),
    "rotary in half precision": ("olmo", torch.bfloat16, {}, "LlamaForCausalLM", "has no counterpart in it"),
    "embeddings that are scaled": ("olmo", torch.float32, {}, "GemmaForCausalLM", "has no counterpart in it"),
    "an unknown class": ("olmo", torch.float32, {}, "Llama9", "names the class 'Llama9', which transf"),
    "norms that stay": ("bert", torch.float32, {}, "LlamaModel", "is no LlamaModel when it is rewritten"),
}


@pytest.mark.parametrize(
    "case",
    [
        c if c in ("clip_qkv", "an unknown class") else pytest.param(c, marks=pytest.mark.slow)
        for c in REFUSED
    ],
)
def test_what_is_no_model_of_the_class_is_refused(case, tmp_path):
    name, dtype, more, architecture, message = REFUSED[case]
    given = saved(tmp_path / "in", name, dtype, **more)
    words = ["rewrite", given, "-o", tmp_path / "out", "--architecture", architecture]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code in (1, 2), result.output
    assert message in result.stderr.splitlines()[-1]
    assert [f.name for f in tmp_path.iterdir()] == ["in"]


SMALL = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 101, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
#: From a class to another: norms with weights and biases, other names, weights that stay tied, new biases.
OTHERS = {
    "Starcoder2ForTokenClassification": ("ArceeForTokenClassification", {}),
    "Qwen2ForCausalLM": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "OlmoForSequenceClassification": ("LlamaForSequenceClassification", {}),
    "MistralForCausalLM": ("LlamaForCausalLM", {"sliding_window": None}),
    "OlmoForCausalLM": ("Qwen2ForCausalLM", {}),
}


@pytest.mark.slow
@pytest.mark.rounding
@pytest.mark.parametrize("name", OTHERS)
def test_other_classes(name, tmp_path):
    architecture, more = OTHERS[name]
    model_class, other_class = getattr(transformers, name), getattr(transformers, architecture)
    torch.manual_seed(0)
    original = model_class(model_class.config_class(**SMALL, **more)).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(0.1 * (torch.rand_like(parameter) - 0.5))
    original.save_pretrained(tmp_path / "in", max_shard_size="30KB")
    normfuse.rewrite_folder(tmp_path / "in", tmp_path / "out", architecture=architecture)
    loaded, report = other_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.config.tie_word_embeddings == original.config.tie_word_embeddings
    found = normfuse.verify(original, loaded.eval(), (), {**inputs("olmo"), "use_cache": False})
    assert found.ok, str(found)
