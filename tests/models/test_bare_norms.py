"""Real architectures whose norms keep no weight and no bias, but ahead of a table that is read elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import normfuse
from tests.models.test_transformers import compiled, distance
from tests.models.zoo import ZOO, Entry, build

#: What is not in the zoo as it is here.
ALSO: dict[str, Entry] = {
    "qwen2": replace(
        ZOO["llama"], model="Qwen2ForCausalLM", config={**ZOO["llama"].config, "num_key_value_heads": 2}
    ),
    "vit": replace(ZOO["vit"], model="ViTForImageClassification"),
}
#: The norms that keep their weight, and why.
TIED = {"gemma": {"model.norm": "weight_tied"}, "gpt2": {"transformer.ln_f": "weight_tied"}}


@pytest.fixture(autouse=True)
def _more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in ALSO.items():
        monkeypatch.setitem(ZOO, name, entry)


def kept(report: normfuse.Report) -> dict[str, str]:
    assert all(("fold_scale" in s.rules) != ("fold_scale" in s.refusals) for s in report.sites)
    return {s.module: s.refusals["fold_scale"].code for s in report.sites if "fold_scale" in s.refusals}


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox", "vit", "gpt2"])
def test_values_are_equal_in_float64(name: str) -> None:
    """1e-12: as in :mod:`tests.models.test_transformers`."""
    model, args, kwargs = build(name, torch.float64)
    fast = compiled(model)
    with torch.no_grad():
        assert distance(model(*args, **kwargs), fast(*args, **kwargs)) <= 1e-12
    assert kept(normfuse.last_report(fast)) == TIED.get(name, {})


@pytest.mark.parametrize("name", ["gemma", "qwen2"])
def test_values_are_no_further_from_float64_where_norms_compute_in_float32(name: str) -> None:
    """Of Gemma's norms the weight joins there as well, so that it is rounded in any model."""
    model, args, kwargs = build(name, torch.bfloat16)
    fast = compiled(model)
    with torch.no_grad():
        fast(*args, **kwargs)
        assert kept(normfuse.last_report(fast)) == TIED.get(name, {})
        result = normfuse.verify(model, fast, args, kwargs)
    assert result.ok, str(result)
    assert result.error_ratio <= 1.5


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_rewritten_program_needs_no_more_memory(name: str) -> None:
    model, args, kwargs = build(name)
    made = normfuse.rewrite(model, args, kwargs, verify="off")
    assert kept(made.report) == TIED.get(name, {})
    assert made.report.copied_bytes == 0
