"""Batch norms whose work the convolutions do: identities in the loaded model, and in the class itself."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import normfuse
from normfuse.checkpoint.stored import neutral_statistics

pytestmark = pytest.mark.models

CLOSE = 1e-11
RESNET = {"num_labels": 3, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
#: Classes with sizes: shortcuts, convolutions in groups and with biases, linear layers.
MODELS = {
    "basic": ("ResNetForImageClassification", {**RESNET, "layer_type": "basic"}),
    "bottleneck": ("ResNetForImageClassification", {**RESNET, "layer_type": "bottleneck"}),
    "regnet": (
        "RegNetForImageClassification",
        {"num_labels": 3, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
    ),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"num_labels": 3, "image_size": 64}),
    "levit": (
        "LevitForImageClassification",
        {
            "num_labels": 3, "image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1], "key_dim": [8, 8, 8],
        },
    ),
}  # fmt: skip


def made(name, dtype=torch.float64):
    class_name, sizes = MODELS[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**sizes)).to(dtype).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
    return model


def answer(model, size=64):
    torch.manual_seed(1)
    images = torch.randn(2, 3, size, size, dtype=model.dtype)
    with torch.no_grad():
        return model(pixel_values=images).logits


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def written(folder, model):
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder / "in", max_shard_size="40KB")
    return normfuse.rewrite_folder(folder / "in", folder / "out")


def test_a_norm_that_does_nothing_is_known_by_what_it_does():
    found = neutral_statistics(nn.BatchNorm2d(3, eps=1e-3, device="meta"), 1e-3)
    assert found == {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1 - 1e-3}
    assert neutral_statistics(nn.BatchNorm1d(3, affine=False, device="meta"), 1e-5) is not None

    class Twice(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    assert neutral_statistics(Twice(3, device="meta"), 1e-5) is None


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["running_mean", "running_var", "weight", "bias"])
def test_a_norm_that_does_something_is_not_removed(entry, tmp_path):
    written(tmp_path, made("basic"))
    removed = json.loads((tmp_path / "out" / "normfuse.json").read_text())["removed_norms"]
    for file in (tmp_path / "out").glob("*.safetensors"):
        tensors = load_file(file)
        changed = tensors.keys() & {f"{removed[0]}.{entry}"}
        save_file({n: t + 0.1 if n in changed else t for n, t in tensors.items()}, file)
    if entry == "bias":  # a layer adds it now, under its own name
        normfuse.load_checkpoint(tmp_path / "out")
        return
    with pytest.raises(normfuse.InputError, match=f"of {removed[0]} it removes a norm that does something"):
        normfuse.load_checkpoint(tmp_path / "out")


def test_a_large_shift_is_added_behind_in_float32(tmp_path):
    original = made("basic", torch.float32)
    with torch.no_grad():
        norms(original)[1].bias.fill_(30)
    done = written(tmp_path, original)
    loaded = normfuse.load_checkpoint(tmp_path / "out")
    assert len(norms(loaded)) == done.report.after["batch_norm"] == 1
    (site,) = [site for site in done.report.sites if site.refusal is not None]
    assert "its shift is large" in site.refusal.message
    torch.manual_seed(1)
    found = normfuse.verify(original, loaded, (), {"pixel_values": torch.randn(2, 3, 64, 64)})
    assert found.ok, str(found)


@pytest.mark.slow
@pytest.mark.rounding
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_as_close_to_float64_as_the_original(dtype, tmp_path):
    original = made("bottleneck", dtype)
    written(tmp_path, original)
    images = torch.randn(2, 3, 64, 64, dtype=dtype)
    plain = type(original).from_pretrained(tmp_path / "out", dtype=dtype).eval()
    for candidate in (normfuse.load_checkpoint(tmp_path / "out"), plain):
        found = normfuse.verify(original, candidate, (), {"pixel_values": images})
        assert found.ok, str(found)


@pytest.mark.parametrize(
    "name", [n if n == "basic" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_float64_agrees_without_the_norms_and_in_the_class_itself(name, tmp_path):
    original = made(name)
    done = written(tmp_path, original)
    loaded, plain = (
        normfuse.load_checkpoint(tmp_path / "out"),
        type(original).from_pretrained(tmp_path / "out"),
    )
    expected = answer(original)
    assert torch.allclose(answer(loaded), expected, rtol=CLOSE, atol=CLOSE)
    assert torch.allclose(answer(plain.double().eval()), expected, rtol=CLOSE, atol=CLOSE)
    assert done.is_plain
    assert len(norms(loaded)) == done.report.after.get("batch_norm", 0)
