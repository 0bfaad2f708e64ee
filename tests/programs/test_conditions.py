"""A map folds no checkpoint that a new rewrite would treat in another way."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

import normfuse
from normfuse.folding.shards import Shards, fold_shards
from normfuse.folding.weight_map import WeightMap
from tests.programs.test_shards import sharded

IMAGE = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def network(*layers: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*layers).to(dtype).eval()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape) + 0.5)
        model[1].bias.mul_(0.1)
    return model


def shifted(model: nn.Module) -> None:
    model[1].bias.data.fill_(1000.0)


def far(model: nn.Module) -> None:
    model[1].running_mean.fill_(1e4)
    model[1].running_var.fill_(1e-2)


def loud(model: nn.Module) -> None:
    model[1].weight.data.fill_(6e4)


def nowhere(model: nn.Module) -> None:
    model[1].running_mean.fill_(torch.inf)


#: A network, its dtype, what happens to its weights, and what the map says to that.
BROKEN: dict[str, tuple[tuple[nn.Module, ...], torch.dtype, Callable[[nn.Module], None], str]] = {
    "shift": (
        (nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), torch.float32, shifted,
        "the shift of a norm with 1.running_mean, 1.running_var, 1.weight, 1.bias is so large",
    ),
    "cancellation": (
        (nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2)), torch.float32, far,
        "the means in 1.running_mean, .* cancel in float32",
    ),
    "large bias": (
        (nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 4)), torch.float32, shifted,
        "the bias in 1.weight, 1.bias is so large beside the weight that it may cancel values in float32",
    ),
    "overflow": ((nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), torch.float16, loud, "not be finite in float16"),
    "no statistics": ((nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), torch.float32, nowhere, "not be finite"),
}  # fmt: skip


def written(
    model: nn.Module, folder, dtype: torch.dtype = torch.float32, x: torch.Tensor = IMAGE
) -> WeightMap:
    """The map as it comes back from its file."""
    result = normfuse.rewrite(model, (x.to(dtype),), verify="off")
    assert [site.action for site in result.report.sites] == ["folded"]
    result.save(folder / "out.pt2", map_path=folder / "out.map.json")
    return WeightMap.load(folder / "out.map.json")


@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_ask_for_another_rewrite_are_refused(name: str, tmp_path) -> None:
    layers, dtype, change, message = BROKEN[name]
    model = network(*copy.deepcopy(layers), dtype=dtype)
    changes = written(model, tmp_path, dtype)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.25)
    folded = changes.fold(model.state_dict())
    again = normfuse.rewrite(model, (IMAGE.to(dtype),), verify="off").program.state_dict
    assert all(torch.equal(folded[key], value) for key, value in again.items())
    change(model)
    with pytest.raises(normfuse.InputError, match=f"does not fit: .*{message}.*; rewrite the model with"):
        changes.fold(model.state_dict())


def test_a_large_shift_behind_a_linear_is_folded_as_before(tmp_path) -> None:
    """It has no other place there."""
    model, rows = network(nn.Linear(6, 4), nn.BatchNorm1d(4)), IMAGE[0, 0]
    changes = written(model, tmp_path, x=rows)
    shifted(model)
    again = normfuse.rewrite(model, (rows,), verify="off").program.state_dict
    folded = changes.fold(model.state_dict())
    assert all(torch.equal(folded[key], value) for key, value in again.items())


def test_what_another_norm_decides_is_no_condition(tmp_path) -> None:
    """One norm of a chain has a large shift, so the shift of the others has no other place either."""
    model = network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[2].bias.data.fill_(1000.0)
    result = normfuse.rewrite(model, (IMAGE,), verify="off")
    shifted(model)
    again = normfuse.rewrite(model, (IMAGE,), verify="off").program
    folded = result.weight_map.fold(model.state_dict())
    assert [n.target for n in again.graph.nodes] == [n.target for n in result.program.graph.nodes]
    assert all(torch.equal(folded[key], value) for key, value in again.state_dict.items())


def test_a_program_that_has_its_shift_behind_takes_any(tmp_path) -> None:
    model = network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    shifted(model)
    changes = written(model, tmp_path)
    assert {condition.reason for condition in changes.conditions} == {"overflow"}
    model[1].bias.data.fill_(-2000.0)
    again = normfuse.rewrite(model, (IMAGE,), verify="off").program.state_dict
    folded = changes.fold(model.state_dict())
    assert all(torch.equal(folded[key], value) for key, value in again.items())


def test_a_checkpoint_in_several_files_is_held_to_the_same(tmp_path) -> None:
    model = network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    changes = written(model, tmp_path)
    fold_shards(changes, Shards(sharded(tmp_path / "good", model.state_dict())), tmp_path / "out")
    shifted(model)
    shards = Shards(sharded(tmp_path / "bad", model.state_dict()))
    with pytest.raises(normfuse.InputError, match="so large"):
        fold_shards(changes, shards, tmp_path / "none")
    assert not (tmp_path / "none").exists()


#: What is changed in a condition of this kind.
DAMAGES: dict[str, tuple[str, dict[str, object]]] = {
    "a reason": ("shift", {"reason": "weather"}),
    "a dtype": ("overflow", {"dtype": "cuda"}),
    "a dtype of whole numbers": ("shift", {"dtype": "int8"}),
    "a dtype without arithmetic": ("overflow", {"dtype": "float8_e4m3fn"}),
    "operands between others": ("shift", {"places": [0.0, 1.0, 2.0, 3.0]}),
    "a number that is too large": ("shift", {"eps": 10**400}),
    "no number": ("shift", {"eps": True}),
    "an operand": ("overflow", {"places": [0]}),
    "no mean": ("overflow", {"reason": "shift", "places": [1]}),
    "no bias": ("overflow", {"reason": "large_bias", "places": [2]}),
    "a bias that is large beside a mean": ("shift", {"reason": "large_bias"}),
    "an operand twice": ("shift", {"places": [0, 1, 2, 2]}),
    "an operand that there is not": ("shift", {"places": [0, 1, 2, 4]}),
    "no value": ("overflow", {"values": []}),
    "a source": (
        "overflow",
        {"values": [{"sources": ["nowhere"], "dtype": "float64", "steps": [{"of": "source_0"}]}]},
    ),
    "no numbers": ("shift", {"eps": "x"}),
}


def test_conditions_that_cannot_be_checked_are_one_sentence(tmp_path) -> None:
    """The shift is compared with a weight of another size."""
    written(network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), tmp_path)
    path = tmp_path / "out.map.json"
    held = json.loads(path.read_text())
    condition = next(one for one in held["conditions"] if one["reason"] == "shift")
    condition["values"][3]["sources"] = ["0.weight"]
    path.write_text(json.dumps(held))
    model = network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(normfuse.InputError, match="cannot be checked: RuntimeError"):
        WeightMap.load(path).fold(model.state_dict())
    path.write_text(json.dumps({**held, "conditions": {}}))
    with pytest.raises(normfuse.InputError, match="damaged"):
        WeightMap.load(path)


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_conditions_are_refused(name: str, tmp_path) -> None:
    written(network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), tmp_path)
    path = tmp_path / "out.map.json"
    held = json.loads(path.read_text())
    reason, change = DAMAGES[name]
    next(one for one in held["conditions"] if one["reason"] == reason).update(change)
    path.write_text(json.dumps(held))
    with pytest.raises(normfuse.InputError, match=r"damaged|there is no dtype"):
        WeightMap.load(path)
