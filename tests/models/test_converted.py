"""Models of transformers whose norms are swapped for layers with statistics: trained, and without norms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import normfuse

pytestmark = pytest.mark.models
transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, use_cache=False)
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, vocab_size=99))


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, vocab_size=99, num_key_value_heads=2, use_cache=False)
    return transformers.LlamaForCausalLM(config)


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, image_size=32, patch_size=8)
    )


MODELS: dict[Callable[[], nn.Module], torch.Tensor] = {
    gpt2: torch.randint(0, 99, (2, 12)),
    bert: torch.randint(0, 99, (2, 12)),
    llama: torch.randint(0, 99, (2, 12)),
    vit: torch.randn(2, 3, 32, 32),
}


def trained(make: Callable[[], nn.Module], to: str) -> tuple[nn.Module, int]:
    """Converted and trained a little, and how many norms were."""
    torch.manual_seed(0)
    model = make()
    made = normfuse.convert(model, to)
    assert made.kept == ()
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model(MODELS[make])[0].square().mean().backward()
        optimizer.step()
    return model.eval(), len(made.converted)


@pytest.mark.parametrize("to", ["unified_norm", "rep_batch_norm", "batch_norm"])
@pytest.mark.parametrize("make", MODELS)
def test_nothing_is_left_of_the_norms(make: Callable[[], nn.Module], to: str) -> None:
    model, count = trained(make, to)
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    with torch.no_grad():
        assert normfuse.verify(model, fast, (MODELS[make],)).ok
    report = normfuse.last_report(fast)
    assert (dict(report.found), dict(report.after)) == ({to: count}, {})


@pytest.mark.parametrize("make", MODELS)
def test_a_power_norm_is_one_rms_norm(make: Callable[[], nn.Module]) -> None:
    model, count = trained(make, "power_norm")
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    with torch.no_grad():
        assert normfuse.verify(model, fast, (MODELS[make],)).ok
    assert dict(normfuse.last_report(fast).found) == {"rms_norm": count}
