"""The map of changed weights: it folds another checkpoint to what a new rewrite would have made of it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import normfuse
from normfuse.folding.weight_map import WeightMap
from tests.backends.networks import PreNorm, example, prenorm
from tests.models.zoo import build


def rewritten(model, tmp_path, *inputs):
    result = normfuse.rewrite(model, inputs)
    result.save(tmp_path / "out.pt2", map_path=tmp_path / "out.map.json")
    return result, WeightMap.load(tmp_path / "out.map.json")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The map of one rewrite, as it is written."""
    folder = tmp_path_factory.mktemp("map")
    rewritten(prenorm(), folder, example())
    return (folder / "out.map.json").read_text()


@pytest.fixture
def changes(text, tmp_path):
    path = tmp_path / "out.map.json"
    path.write_text(text)
    return WeightMap.load(path)


def test_another_checkpoint_folds_to_the_same_bits_as_another_rewrite(tmp_path):
    _, changes = rewritten(prenorm(seed=0), tmp_path, example())
    other = prenorm(seed=1)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    folded = changes.fold(other.state_dict())
    expected = normfuse.rewrite(other, (example(),)).program.state_dict
    assert folded.keys() == expected.keys()
    assert all(torch.equal(folded[k], expected[k]) for k in expected)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    module = normfuse.pt2.load_program(tmp_path / "out.pt2").module()
    module.load_state_dict(folded)
    with torch.no_grad():
        torch.testing.assert_close(module(example()), other(example()), rtol=1e-11, atol=1e-11)


@pytest.mark.models
@pytest.mark.parametrize("name", ["gpt2", "dinov2"])
def test_tied_tables_and_scaled_layers(name, tmp_path):
    """A checkpoint may leave out the second name of a tied tensor, as safetensors files do."""
    pytest.importorskip("transformers")
    model, args, kwargs = build(name, torch.float64)
    result = normfuse.rewrite(model, args, kwargs)
    changes = result.weight_map
    result.save(tmp_path / "out.pt2")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = dict(model.state_dict())
    state.pop("lm_head.weight", None)
    folded = changes.fold(state)
    module = normfuse.pt2.load_program(tmp_path / "out.pt2").module()
    missing = module.load_state_dict(folded, strict=False).missing_keys
    assert missing == (["lm_head.weight"] if name == "gpt2" else [])
    assert normfuse.verify(model, module, args, kwargs).ok


class NotStored(nn.Module):
    """A stream that a buffer outside of the state dict writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()
        self.register_buffer("offset", torch.randn(8, 16).double(), persistent=False)

    def forward(self, x):
        y = self.inner.embed(x) + self.offset[:6]
        return self.inner.head(self.inner.norm(y + self.inner.blocks[0](y)))


def test_sources_outside_of_checkpoints_come_with_their_values(tmp_path):
    torch.manual_seed(0)
    model = NotStored().eval()
    _, changes = rewritten(model, tmp_path, example())
    assert set(changes.constants) == {"offset"}
    other = NotStored().eval()
    other.offset = model.offset
    with torch.no_grad():
        other.inner.embed.weight.mul_(1.5)
    folded = changes.fold(other.state_dict())
    module = normfuse.pt2.load_program(tmp_path / "out.pt2").module()
    assert module.load_state_dict(folded, strict=False).unexpected_keys == []
    assert normfuse.verify(other, module, (example(),)).ok


def test_what_changed_is_said_in_words(changes):
    how = {one.name: one.how for one in changes.changed}
    assert how["embed.bias"] == "sub(embed.bias, mean(embed.bias, [0], True))"
    assert set(how) == {
        f"{m}.{p}"
        for m in ("embed", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head")
        for p in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "embed.bias"}, "no tensor embed.bias"),
        (lambda s: {f"model.{k}": v for k, v in s.items()}, "no tensor .*; it has model."),
        (
            lambda s: {**s, "embed.bias": torch.zeros(3).double()},
            "float64 3 in the checkpoint and float64 16",
        ),
        (lambda s: {k: v.float() for k, v in s.items()}, "float32 .* in the checkpoint and float64"),
        (lambda s: {**s, "embed.bias": 3}, "no tensor embed.bias"),
    ],
    ids=["missing", "prefix", "shape", "dtype", "no tensor"],
)
def test_a_checkpoint_of_another_model_is_refused(state, message, changes):
    with pytest.raises(normfuse.InputError, match=message):
        changes.fold(state(PreNorm().double().state_dict()))


def damaged(**changes):
    def change(held):
        return {**held, **changes}

    return change


def with_operator(name):
    def change(held):
        first, *rest = held["changed"]
        steps = [{**step, "operator": name} if "operator" in step else step for step in first["steps"]]
        return {**held, "changed": [{**first, "steps": steps}, *rest]}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: [], "is not a weight map of normfuse"),
        (damaged(format="something"), "is not a weight map of normfuse"),
        (damaged(version=1), "version 1, and this normfuse reads 2"),
        (damaged(needed={}), "is damaged"),
        (damaged(changed=3), "is damaged"),
        (lambda held: {**held, "changed": [{**held["changed"][0], "name": ["x"]}]}, "name is not text"),
        (with_operator("aten.from_file.default"), "has no place in a weight's recipe"),
        (with_operator("aten.add_.Tensor"), "has no place in a weight's recipe"),
        (with_operator("aten.nothing.default"), "is not an operator of this PyTorch"),
        (with_operator("os.system"), "is not an operator of this PyTorch"),
    ],
)
def test_a_damaged_or_hostile_map_is_refused(change, message, text, tmp_path):
    path = tmp_path / "out.map.json"
    path.write_text(json.dumps(change(json.loads(text))))
    with pytest.raises(normfuse.InputError, match=message):
        WeightMap.load(path)
    path.write_text("{")
    with pytest.raises(normfuse.InputError, match="not JSON"):
        WeightMap.load(path)


class OtherOperator(nn.Module):
    """Its weight comes out of an operator that is none of ATen's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x):
        weight = torch.ops.prims.neg(self.inner.embed.weight)
        y = torch.nn.functional.linear(x, weight, self.inner.embed.bias)
        return self.inner.head(self.inner.norm(y + self.inner.blocks[0](y)))


def test_a_map_that_cannot_be_written_does_not_stop_the_program(tmp_path):
    result = normfuse.rewrite(OtherOperator().eval(), (example(),))
    assert result.report.after == {"rms_norm": 2}
    assert "'prims.neg.default' is not an operator of this PyTorch" in result.unmapped
    with pytest.raises(normfuse.InputError, match="has no map that could be written"):
        _ = result.weight_map
    assert result.save(tmp_path / "out.pt2").exists()
