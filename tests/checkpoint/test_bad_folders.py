"""Folders that are damaged, hostile or of another kind: one sentence, and nothing is written or run."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import normfuse
from normfuse.cli.app import app
from tests.checkpoint.folders import contents, saved

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("template") / "in", "gpt2")


@pytest.fixture(scope="module")
def rewritten(template):
    normfuse.rewrite_folder(template, template.parent / "out")
    return template.parent / "out"


@pytest.fixture
def given(template, tmp_path):
    return shutil.copytree(template, tmp_path / "in")


def edit(folder, file="config.json", **entries):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def all_shards(folder):
    return sorted(folder.glob("*.safetensors"))


def shard(folder, number=2):
    return all_shards(folder)[number]


def without_a_tensor(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = load_file(shard(folder))
    name = next(iter(tensors))
    del index["weight_map"][name], tensors[name]
    save_file(tensors, shard(folder))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def resaved(folder, change, only="", number=2):
    file = shard(folder, number)
    save_file({n: change(v).contiguous() if only in n else v for n, v in load_file(file).items()}, file)


def head(folder, change):
    data = shard(folder).read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + length])
    shard(folder).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


class Runs:
    """A pickle that would do something when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return type(self.file).touch, (self.file,)


def pickled(folder):
    for file in folder.glob("model*"):
        file.unlink()
    torch.save({"a": Runs(folder / "ran")}, folder / "pytorch_model.bin")


def outside(folder):
    edit(folder, "model.safetensors.index.json", weight_map={"a": "../in/model.safetensors"})


def misplaced(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name, *_ = index
    edit(folder, "model.safetensors.index.json", weight_map=index | {name: shard(folder, -1).name})


def named(folder, tensor, file, number=2):
    """Call one file otherwise, and its tensors, or let the index name one that there is none of."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    if tensor is not None:
        edit(folder, "model.safetensors.index.json", weight_map={**index, tensor: file})
        return
    old = shard(folder, number)
    old.rename(folder / file)
    places = {name: file if place == old.name else place for name, place in index.items()}
    edit(folder, "model.safetensors.index.json", weight_map=places)


def colliding(folder):
    named(folder, None, "a.safetensors", 1)
    named(folder, None, "pytorch_a.safetensors", -1)


def head_entry(folder, name, **entry):
    """One more tensor without bytes in the head, or other metadata."""

    def change(text):
        held = json.loads(text)
        return json.dumps({**held, name: entry.get("value", {"data_offsets": [0, 0], **entry})}).encode()

    head(folder, change)


def twice(folder):
    one, other = load_file(shard(folder, 1)), load_file(shard(folder, 2))
    name = next(iter(one))
    save_file({**other, name: one[name]}, shard(folder, 2))


def link(folder, to):
    file = shard(folder)
    file.unlink()
    file.symlink_to(to)


def pipe(folder):
    shard(folder).unlink()
    os.mkfifo(shard(folder).parent / "model-00003-of-00008.safetensors")


EMPTY = {"dtype": "F32", "shape": [0]}
NO_NAME = "is no name of a tensor or a file"
CODE = "names code that may be fetched and run"
BAD = {
    "index with an absolute path": (lambda f: named(f, "a", "/etc/passwd"), "is not in the same folder"),
    "index that names the folder above": (lambda f: named(f, "a", ".."), "is not in the same folder"),
    "index with a line break": (lambda f: named(f, "a", "b\nc"), NO_NAME),
    "index with a control character": (lambda f: named(f, "a\x1b[31m", "b"), NO_NAME),
    "index with half a character": (lambda f: named(f, "a", "b\ud800"), NO_NAME),
    "index with a long name": (lambda f: named(f, "a", "b" * 5000), NO_NAME),
    "index that names our own state": (lambda f: named(f, None, ".state"), "does not end in .safetensors"),
    "files that get one name": (colliding, "which would both become a.safetensors; rename one"),
    "a tensor in two files": (twice, "says that"),
    "shard links to nothing": (lambda f: link(f, "/nowhere"), "is missing"),
    "shard links to itself": (lambda f: link(f, shard(f).name), "is missing"),
    "shard links to another kind": (lambda f: link(f, f / "config.json"), "no safetensors file"),
    "shard is a pipe": (pipe, "is missing"),
    "head that is a number": (lambda f: head(f, lambda t: b"1" * 100), "its head has another form"),
    "head that is a text": (lambda f: head(f, lambda t: b'"1"'), "its head has another form"),
    "head that is nested": (lambda f: head(f, lambda t: b"[" * 200_000), "its head has another form"),
    "head whose metadata is a list": (
        lambda f: head_entry(f, "__metadata__", value=[1]),
        "its head has another form",
    ),
    "head whose length is too large": (
        lambda f: shard(f).write_bytes(b"\xff" * 8 + shard(f).read_bytes()[8:]),
        "is truncated",
    ),
    "head with a huge size": (
        lambda f: head_entry(f, "z", dtype="F32", shape=[0, 10**30]),
        "z has a size that is no count",
    ),
    "head with a size that is no number": (
        lambda f: head_entry(f, "z", dtype="F32", shape=[float("nan")]),
        "z has a size that is no count",
    ),
    "head with a name of two lines": (lambda f: head_entry(f, "z\n", **EMPTY), NO_NAME),
    "attention of a hub": (lambda f: edit(f, attn_implementation="someone/attention"), CODE),
    "attention of a hub, hidden": (lambda f: edit(f, _attn_implementation_internal="someone/a"), CODE),
    "attention of a hub, in a part": (lambda f: edit(f, part={"_attn_implementation": "someone/a"}), CODE),
    "code of its own, in a part": (
        lambda f: edit(f, text_config={"auto_map": {"AutoModel": "m.M"}}),
        "brings Python code of its own",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "is no checkpoint folder: it has no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "is damaged: it is not JSON"),
    "config is a list": (
        lambda f: (f / "config.json").write_text("[1]"),
        "is damaged: it is not a JSON object",
    ),
    "unknown class": (
        lambda f: edit(f, architectures=["Nonesuch"]),
        "of the class 'Nonesuch', which transformers",
    ),
    "a function": (
        lambda f: edit(f, architectures=["pipeline"]),
        "of the class 'pipeline', which transformers",
    ),
    "an expression": (lambda f: edit(f, architectures=["a.b()"]), "of the class 'a.b()', which transformers"),
    "no class": (lambda f: edit(f, architectures=None), "names no architecture"),
    "code of its own": (lambda f: edit(f, auto_map={"AutoModel": "m.M"}), "brings Python code of its own"),
    "quantized": (lambda f: edit(f, quantization_config={"bits": 4}), "is quantized"),
    "nonsense in config": (lambda f: edit(f, n_head="x"), "does not fit GPT2LMHeadModel"),
    "sizes that do not fit": (lambda f: edit(f, n_head=5), "cannot be built"),
    "other sizes": (
        lambda f: edit(f, vocab_size=7),
        "transformer.wte.weight is 101x32 in the files and 7x32",
    ),
    "no weights": (
        lambda f: [w.unlink() for w in f.glob("model*")],
        "holds no weights: there is no model.safet",
    ),
    "no index": (
        lambda f: (f / "model.safetensors.index.json").unlink(),
        "holds no weights: there is no model",
    ),
    "shard missing": (lambda f: shard(f).unlink(), "which model.safetensors.index.json names, is missing"),
    "shard truncated": (
        lambda f: shard(f).write_bytes(shard(f).read_bytes()[:-9]),
        "bytes, and its head says",
    ),
    "shard cut in its head": (lambda f: shard(f).write_bytes(shard(f).read_bytes()[:50]), "is truncated"),
    "shard empty": (lambda f: shard(f).write_bytes(b""), "is truncated, or no safetensors file"),
    "shard of junk": (lambda f: shard(f).write_bytes(b"junk" * 50), "is truncated, or no safetensors file"),
    "head that is no JSON": (
        lambda f: head(f, lambda t: b"{" * len(t)),
        "is damaged, or no safetensors file",
    ),
    "head with other sizes": (
        lambda f: head(f, lambda t: t.replace(b"[32", b"[31")),
        "which its shape does not",
    ),
    "head with other places": (
        lambda f: head(f, lambda t: t.replace(b'"data_offsets":[0,', b'"data_offsets":[4,')),
        "is damaged, or no safetensors file",
    ),
    "head with a dtype of its own": (
        lambda f: head(f, lambda t: t.replace(b'"F32"', b'"F99"')),
        "has the dtype F99",
    ),
    "several dtypes": (lambda f: resaved(f, torch.Tensor.bfloat16), "holds tensors of several dtypes"),
    "no tensor": (without_a_tensor, "is a shard missing?"),
    "index elsewhere": (outside, "names the file '../in/model.safetensors', which is not in the same folder"),
    "index that disagrees": (misplaced, "says that"),
    "pickles that run code": (pickled, "could run code"),
    "not finite": (lambda f: resaved(f, lambda t: t * torch.inf), "would not be finite"),
}


@pytest.mark.parametrize("kind", BAD)
def test_it_is_one_sentence_and_nothing_is_written(kind, given, tmp_path):
    change, message = BAD[kind]
    change(given)
    result = CliRunner().invoke(app, ["rewrite", str(given), "-o", str(tmp_path / "out")])
    assert result.exit_code in (1, 2), result.output
    error = result.stderr.splitlines()[-1]
    assert error.startswith("normfuse: ")
    assert message in error
    assert "--debug" not in error
    assert [f.name for f in tmp_path.iterdir()] == ["in"]
    assert not (given / "ran").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rewrite", "openai/gpt2", "-o", "out"), "hf download openai/gpt2 --local-dir FOLDER"),
        (("rewrite", "gpt2", "-o", "out"), "hf download gpt2 --local-dir FOLDER"),
        (("rewrite", "gpt2", "-o", "out.onnx"), "hf download gpt2 --local-dir FOLDER"),
        (("rewrite", "{in}", "-o", "out.pt2", "--dtype", "float64"), "whose files say the dtype"),
        (("rewrite", "{in}", "-o", "out.pt2", "--force"), "is for checkpoint folders that become folders"),
        (("rewrite", "{in}", "-o", "out", "--dtype", "float64"), "--dtype is not for checkpoint folders"),
        (("rewrite", "{in}", "-o", "out", "--verify", "sites"), "--verify is not for checkpoint folders"),
        (("rewrite", "{in}", "-o", "out", "--only", "rotate"), "only names rotate, which has no form"),
        (("rewrite", "{in}", "-o", "out", "--target", "crms_norm"), "target='crms_norm' changes sizes"),
        (("rewrite", "{in}", "-o", "{in}"), "it is the input"),
        (("rewrite", "{in}", "-o", "{in}/out"), "one of the two contains the other"),
        (("rewrite", "{in}", "-o", "none/out"), "the folder none does not exist"),
        (("rewrite", "{in}", "-o", "out", "--json", "{in}/config.json"), "is in the folder of the input"),
        (("rewrite", "{in}", "-o", "out", "--html", "{in}/new.html"), "is in the folder of the input"),
        (("explain", "{in}", "--json", "{in}/config.json"), "is in the folder of the input"),
        (("rewrite", "a.b:c", "-o", "out.pt2", "--force"), "--force is for checkpoint folders"),
        (("rewrite", "a.b:c", "-o", "out.pt2", "--architecture", "A"), "--architecture is for checkpoint"),
        (
            ("rewrite", "{in}", "-o", "out", "--architecture", "A", "--new-biases"),
            "new_biases is for the class of the folder",
        ),
        (("explain", "{in}", "--stages"), "--stages is not for checkpoint folders"),
        (("explain", "{in}", "--dtype", "float64"), "--dtype is not for checkpoint folders"),
        (("explain", "{in}", "--only", "rotate"), "only names rotate, which has no form"),
    ],
)
def test_bad_use(words, message, template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [word.replace("{in}", str(template)) for word in words])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", ["", "out"])
def test_an_output_that_is_the_input_by_a_link(inside, given, tmp_path):
    (tmp_path / "link").symlink_to(given)
    before = contents(given)
    words = ["rewrite", str(given), "-o", str(tmp_path / "link" / inside), "--force"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    assert "it is the input, or one of the two contains the other" in result.stderr
    assert contents(given) == before


@pytest.mark.parametrize("most", [0, 1000, 10_000])
def test_files_that_may_not_grow(most, given, tmp_path):
    """As on a full disk: the first file, one in between, and none of the weights can be written."""
    before, limits = contents(given), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with pytest.raises(normfuse.InputError, match=r"^cannot write .*out: File too large$"):
            normfuse.rewrite_folder(given, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(given) == before
    assert [f.name for f in tmp_path.iterdir()] == ["in"]


def test_an_eps_that_no_norm_can_have_leaves_the_norms(given, tmp_path):
    edit(given, layer_norm_epsilon=float("inf"))
    done = normfuse.rewrite_folder(given, tmp_path / "out")
    assert done.report.after == {"layer_norm": 5}
    normfuse.load_checkpoint(tmp_path / "out")


def test_a_rewritten_folder_is_not_rewritten_again(rewritten, tmp_path):
    with pytest.raises(normfuse.InputError, match="was rewritten already"):
        normfuse.rewrite_folder(rewritten, tmp_path / "out")


def record(folder, change):
    path = folder / "normfuse.json"
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


@pytest.mark.parametrize(
    "entry", [{"n_layer": 10**9}, {"num_labels": 10**9}, {"part": {"num_layers": 1e300}}]
)
def test_more_layers_than_any_model_has_are_refused_before_they_are_made(entry, given, tmp_path):
    edit(given, **entry)
    with pytest.raises(normfuse.InputError, match="are the most that are read"):
        normfuse.explain_folder(given)


@pytest.mark.parametrize("eps", [float("nan"), -1e-5, "1e-5", True, [1e-5]])
def test_an_eps_that_is_none_is_refused_before_a_shard_is_read(eps, given, tmp_path):
    edit(given, text_config={"layer_norm_epsilon": eps})
    for file in given.glob("*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(normfuse.InputError, match="as layer_norm_epsilon, which is no eps"):
        normfuse.rewrite_folder(given, tmp_path / "out")


def test_a_head_with_more_tensors_than_any_model_has(given, monkeypatch, tmp_path):
    monkeypatch.setattr("normfuse.checkpoint.header._MOST", 2)
    with pytest.raises(normfuse.InputError, match="tensors, and 2 are the most that are read"):
        normfuse.rewrite_folder(given, tmp_path / "out")


LN = "transformer.h.0.ln_1"
NOTHING = {"has_weight": False, "has_bias": False}
UNLOADABLE = {
    "generation config is no JSON": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "generation_config.json cannot be read",
    ),
    "a module without a name": (
        lambda f: record(f, lambda r: r["norms"].update({"": r["norms"][LN] | NOTHING})),
        "it names a module by no path",
    ),
    "attention of a hub": (lambda f: edit(f, attn_implementation="someone/attention"), CODE),
    "no record": (lambda f: (f / "normfuse.json").unlink(), "it was not rewritten by normfuse"),
    "no JSON": (lambda f: (f / "normfuse.json").write_text("x"), "is damaged: it is not JSON"),
    "other format": (lambda f: record(f, lambda r: r.update(format="x")), "is no record of this version"),
    "later version": (lambda f: record(f, lambda r: r.update(version=2)), "is no record of this version"),
    "no norms": (lambda f: record(f, lambda r: r.pop("norms")), "is damaged: KeyError"),
    "norms are a list": (lambda f: record(f, lambda r: r.update(norms=[1])), "is damaged: AttributeError"),
    "unknown kind": (
        lambda f: record(f, lambda r: r["norms"][LN].update(kind="os.system")),
        "a norm of the kind",
    ),
    "eps is text": (lambda f: record(f, lambda r: r["norms"][LN].update(eps="1")), "a norm with eps"),
    "width is negative": (
        lambda f: record(f, lambda r: r["norms"][LN].update(width=-1)),
        "a norm of the kind",
    ),
    "no such module": (
        lambda f: record(f, lambda r: r["norms"].update(x=r["norms"].pop(LN))),
        "normfuse.json does not fit GPT2LMHeadModel",
    ),
    "attention as a norm": (
        lambda f: record(f, lambda r: r["norms"].update({"transformer.h.0.mlp": r["norms"][LN] | NOTHING})),
        "of transformer.h.0.mlp it makes a norm of width 32, and it is none",
    ),
    "an activation as a norm": (
        lambda f: record(
            f, lambda r: r["norms"].update({"transformer.h.0.mlp.act": r["norms"][LN] | NOTHING})
        ),
        "of transformer.h.0.mlp.act it makes a norm of width 32, and it is none",
    ),
    "a norm of another width": (
        lambda f: record(f, lambda r: r["norms"][LN].update(width=31)),
        "it makes a norm of width 31, and it is none",
    ),
    "a weight that does something is left out": (
        lambda f: [resaved(f, lambda t: t + 1, "ln_1.weight", i) for i in range(len(all_shards(f)))],
        "it leaves out the weight, which does something",
    ),
    "a norm is removed": (
        lambda f: record(f, lambda r: r.update(removed_norms=["transformer.h.1.ln_2"])),
        "of transformer.h.1.ln_2 it removes a module that is no norm with stored statistics",
    ),
    "a layer is removed": (
        lambda f: record(f, lambda r: r.update(removed_norms=["transformer.h.1.attn"])),
        "it removes a module that is no norm with stored statistics",
    ),
    "a layer loses its mean": (
        lambda f: record(f, lambda r: r.update(centred_lookups=["lm_head"])),
        "of lm_head it takes the mean from its result, and it is no embedding",
    ),
    "a bias of another size": (
        lambda f: record(f, lambda r: r.update(new_biases={"lm_head": "transformer.ln_f.bias"})),
        "of lm_head it adds a bias of the shape (32,)",
    ),
    "a bias where there is one": (
        lambda f: record(f, lambda r: r.update(new_biases={LN: "transformer.ln_f.bias"})),
        "it adds a bias, and it is no layer without one",
    ),
    "embeddings for a layer that takes none": (
        lambda f: record(f, lambda r: r.update(centred_inputs=["lm_head"])),
        "normfuse.json does not fit GPT2LMHeadModel: lm_head takes no inputs_embeds",
    ),
    "embeddings for a number": (
        lambda f: record(f, lambda r: r.update(centred_inputs=[1])),
        "centred_inputs is not a list of paths",
    ),
    "no such bias": (
        lambda f: record(f, lambda r: r.update(new_biases={"lm_head": "b"})),
        "holds no tensor b",
    ),
    "another class": (lambda f: edit(f, architectures=["GPT2Model"]), "the weights are of another class"),
    "code of its own": (lambda f: edit(f, auto_map={"AutoModel": "m.M"}), "brings Python code of its own"),
    "shard missing": (lambda f: shard(f).unlink(), "is missing"),
    "a tensor missing": (without_a_tensor, "missing keys"),
    "other sizes": (lambda f: edit(f, vocab_size=7), "does not fit GPT2LMHeadModel"),
    "pickles": (lambda f: pickled(f), "could run code"),
}


@pytest.mark.parametrize("kind", UNLOADABLE)
def test_what_cannot_be_loaded_is_one_sentence(kind, rewritten, tmp_path):
    folder = shutil.copytree(rewritten, tmp_path / "out")
    change, message = UNLOADABLE[kind]
    change(folder)
    with pytest.raises(normfuse.InputError) as error:
        normfuse.load_checkpoint(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "ran").exists()


def test_a_path_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_bytes(pickle.dumps(1))
    for name, message in (("none", "does not exist"), ("file", "is no folder")):
        with pytest.raises(normfuse.InputError, match=message):
            normfuse.load_checkpoint(tmp_path / name)


def test_code_and_other_weights_are_not_copied_and_the_output_says_what_was_done(given, tmp_path):
    for name in ("modeling.py", "model.onnx", "pytorch_model.bin", ".hidden"):
        (given / name).write_text("x")
    (given / "onnx").mkdir()
    words = ["rewrite", given, "-o", tmp_path / "out", "--json", tmp_path / "report.json"]
    result = CliRunner().invoke(app, [*map(str, words), "--expect", "rms_norm=5"])
    assert result.exit_code == 0, result.output
    assert (
        "not copied (other weights, code, folders): model.onnx, modeling.py, pytorch_model.bin, onnx/"
        in result.output
    )
    assert "transformers alone loads it too, as the original class, GPT2LMHeadModel" in result.output
    assert "found 5 layer_norm; now 5 rms_norm" in result.output
    assert "writing model-00001-of-" in result.stderr
    left = {f.name for f in (tmp_path / "out").iterdir()}
    copied = {f.name for f in given.iterdir() if f.name.startswith("model-") or f.suffix == ".json"}
    assert left == copied | {"normfuse.json"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["after"], report["loads_in_transformers"]) == ({"rms_norm": 5}, True)


def test_a_dtype_that_cannot_hold_a_folded_weight(tmp_path):
    """A norm's weight of 2000 times entries of 60 is beyond float16."""
    given = saved(tmp_path / "in", "llama", torch.float16)
    for file in given.glob("*.safetensors"):
        large = {"input_layernorm": 2000.0, "q_proj": 60.0}
        entries = {
            name: torch.full_like(value, next((v for part, v in large.items() if part in name), 0.0))
            for name, value in load_file(file).items()
        }
        save_file(entries, file)
    with pytest.raises(normfuse.InputError, match=r"would not be finite in float16 .*--skip fold_scale"):
        normfuse.rewrite_folder(given, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("kind", [str, Path])
def test_the_function_for_folders_is_named(kind: type, tmp_path: Path) -> None:
    with pytest.raises(normfuse.InputError, match=r"rewrite_folder.* and normfuse\.explain_folder"):
        normfuse.explain(kind(tmp_path))
