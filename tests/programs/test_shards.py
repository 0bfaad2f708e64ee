"""Checkpoints in several files: folded file by file, into the same layout, or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import normfuse
from normfuse.cli.app import app
from normfuse.folding import shards as module
from normfuse.folding.shards import Shards, fold_shards
from tests.backends.networks import example, prenorm

FILES = ("model-00001-of-00002", "model-00002-of-00002")
KINDS = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def save(tensors, path):
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def load(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path)


def sharded(folder, state, kind="safetensors"):
    """Every other tensor in the other file, so that weights and their biases are apart; returns the index."""
    folder.mkdir()
    places = {name: f"{FILES[i % 2]}.{kind}" for i, name in enumerate(sorted(state))}
    for file in set(places.values()):
        save({n: state[n].clone() for n, place in places.items() if place == file}, folder / file)
    index = folder / KINDS[kind]
    size = sum(t.nbytes for t in state.values())
    index.write_text(json.dumps({"metadata": {"total_size": size, "by": "hand"}, "weight_map": places}))
    return index


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    rewritten = normfuse.rewrite(prenorm(dtype=torch.float32), (example(dtype=torch.float32),), verify="off")
    rewritten.save(folder / "out.pt2", map_path=folder / "out.map.json")
    return folder


@pytest.fixture(scope="module")
def state():
    return prenorm(seed=4, dtype=torch.float32).state_dict()


def changes(made):
    return normfuse.folding.weight_map.WeightMap.load(made / "out.map.json")


def left_in(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", ["index", "folder"])
def test_it_gives_the_bits_of_a_single_file_in_the_same_layout(kind, named, made, state, tmp_path):
    index = sharded(tmp_path / "in", state, kind)
    before = {p.name: p.read_bytes() for p in index.parent.iterdir()}
    given = index if named == "index" else index.parent
    result = run("fold", made / "out.map.json", given, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"{len(state)} tensors, 12 folded in place, 0 added" in result.output
    assert left_in(tmp_path) == ["in", "out"]
    assert left_in(tmp_path / "out") == left_in(index.parent)
    assert {p.name: p.read_bytes() for p in index.parent.iterdir()} == before
    assert json.loads((tmp_path / "out" / index.name).read_text()) == json.loads(index.read_text())
    expected, found = changes(made).fold(state), {}
    for file in {f"{name}.{kind}" for name in FILES}:
        found |= load(tmp_path / "out" / file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_new_tensor_goes_where_its_source_is(made, state, tmp_path):
    index = sharded(tmp_path / "in", state)
    first, *rest = sorted(changes(made).changed, key=lambda one: len(one.sources))
    added = type(first)(**{**vars(first), "name": f"{first.name}_folded", "is_new": True})
    altered = type(changes(made))(**{**vars(changes(made)), "changed": (added, *rest)})
    assert fold_shards(altered, Shards(index), tmp_path / "out") == len(state) + 1
    record = json.loads((tmp_path / "out" / index.name).read_text())
    assert record["weight_map"][added.name] == record["weight_map"][first.name]
    source = state[first.name]
    assert record["metadata"]["total_size"] == sum(t.nbytes for t in state.values()) + source.nbytes
    assert record["metadata"]["by"] == "hand"
    file = load_file(tmp_path / "out" / record["weight_map"][first.name])
    assert torch.equal(file[first.name], source)
    assert torch.equal(file[added.name], changes(made).fold(state)[first.name])


def test_one_file_at_a_time_is_read(made, state, tmp_path, monkeypatch):
    """What is held when a file is written: its own tensors, and none of another file."""
    index = sharded(tmp_path / "in", state)
    written = []

    def watch(tensors, path, metadata, original=module.save_checkpoint):
        written.append(set(tensors))
        return original(tensors, path, metadata)

    monkeypatch.setattr(module, "save_checkpoint", watch)
    fold_shards(changes(made), Shards(index), tmp_path / "out")
    assert len(written) == 2
    assert not written[0] & written[1]


def without(name):
    def change(index):
        record = json.loads(index.read_text())
        del record["weight_map"][name]
        index.write_text(json.dumps(record))

    return change


def truncated(index):
    file = index.parent / f"{FILES[1]}.{'bin' if '.bin.' in index.name else 'safetensors'}"
    file.write_bytes(file.read_bytes()[:-100])


def replaced(index, **entries):
    index.write_text(json.dumps({**json.loads(index.read_text()), **entries}))


def elsewhere(index):
    replaced(index, weight_map={"embed.bias": "../secret.safetensors"})


def other_shape(index):
    file = index.parent / f"{FILES[0]}.safetensors"
    save({k: torch.zeros(3) for k in load_file(file)}, file)


def other_names(index):
    for file in FILES:
        path = index.parent / f"{file}.safetensors"
        save({f"model.{k}": v for k, v in load_file(path).items()}, path)
    places = json.loads(index.read_text())["weight_map"]
    replaced(index, weight_map={f"model.{k}": v for k, v in places.items()})


def misplaced(index):
    places = json.loads(index.read_text())["weight_map"]
    replaced(index, weight_map={**places, "embed.bias": places["embed.weight"]})


BAD = [
    (
        "safetensors",
        lambda i: (i.parent / f"{FILES[1]}.safetensors").unlink(),
        "safetensors, which",
    ),
    (
        "bin",
        lambda i: (i.parent / f"{FILES[1]}.bin").unlink(),
        "bin, which pytorch_model.bin.index",
    ),
    ("safetensors", truncated, "is not a checkpoint that can be read"),
    ("bin", truncated, "is not a checkpoint that can be read"),
    ("safetensors", lambda i: i.unlink(), "is a folder without model.safetensors.index.json"),
    ("safetensors", lambda i: i.write_text("{"), "is not the index of a checkpoint: it is not JSON"),
    ("safetensors", lambda i: i.write_text("[1]"), "it has no weight_map from tensors to files"),
    ("safetensors", lambda i: replaced(i, weight_map={"a": 3}), "it has no weight_map from tensors to files"),
    ("safetensors", elsewhere, "names the file '../secret.safetensors', which is not in the same folder"),
    ("safetensors", misplaced, "which does not hold it"),
    ("safetensors", other_shape, "the map does not fit: "),
    ("safetensors", other_names, "the map does not fit: the checkpoint holds no tensor"),
]


@pytest.mark.parametrize(("kind", "damage", "message"), BAD)
def test_a_checkpoint_that_is_damaged_or_another_models_leaves_nothing(
    kind, damage, message, made, state, tmp_path
):
    damage(sharded(tmp_path / "in", state, kind))
    result = run("fold", made / "out.map.json", tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 2, result.output
    *said, error = result.stderr.splitlines()
    assert error.startswith("normfuse: ")
    assert message in error
    assert not any(line.startswith("normfuse: ") for line in said)
    assert left_in(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out.safetensors", "the output has to be a folder"),
        ("in", "it exists; choose a new folder"),
        ("none/out", "none does not exist"),
    ],
)
def test_an_output_that_cannot_be_is_refused_first(output, message, made, state, tmp_path):
    sharded(tmp_path / "in", state)
    result = run("fold", made / "out.map.json", tmp_path / "in", "-o", tmp_path / output)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert left_in(tmp_path) == ["in"]


def test_a_full_disk_leaves_nothing(made, state, tmp_path, monkeypatch):
    index = sharded(tmp_path / "in", state)

    def full(*anything):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("normfuse.folding.checkpoint._save_safetensors", full)
    with pytest.raises(normfuse.InputError, match="No space left on device"):
        fold_shards(changes(made), Shards(index), tmp_path / "out")
    assert left_in(tmp_path) == ["in"]


def test_entries_that_the_index_forgot_are_kept(made, state, tmp_path):
    index = sharded(tmp_path / "in", state)
    without("head.bias")(index)
    fold_shards(changes(made), Shards(index), tmp_path / "out")
    assert "head.bias" in json.loads((tmp_path / "out" / index.name).read_text())["weight_map"]
