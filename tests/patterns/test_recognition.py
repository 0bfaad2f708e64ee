"""Norms are recognised whatever their spelling, nothing is mistaken for one, and lifting changes no bit."""

from __future__ import annotations

import pytest
import torch

from normfuse.ir import norms_in
from tests.patterns import spellings
from tests.patterns.capturing import lifted

NAMED = {
    "llama": (spellings.llama, "rms_norm", 1e-6),
    "t5": (spellings.t5, "rms_norm", 1e-6),
    "gemma": (spellings.gemma, "rms_norm", 1e-6),
    "native rms": (spellings.native_rms, "rms_norm", 1e-6),
    "cohere": (spellings.cohere, "layer_norm", 1e-5),
    "deberta": (spellings.deberta, "layer_norm", 1e-7),
    "native layer": (spellings.native_layer, "layer_norm", 1e-5),
    "olmo": (spellings.olmo, "layer_norm", 1e-5),
    "var and mean": (spellings.var_and_mean, "layer_norm", 1e-5),
    "biased var": (spellings.biased_var, "layer_norm", 1e-5),
}


def operands(dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 5, 8).to(dtype), (1 + 0.3 * torch.randn(8)).to(dtype), torch.randn(8).to(dtype)]


def hostile(dtype: torch.dtype) -> list[torch.Tensor]:
    base = torch.randn(2, 5, 8)
    tricky = [base + 1e4, base * 1e-30, base * 1e30, torch.ones(2, 5, 8), torch.zeros(2, 5, 8)]
    infinite = base.clone()
    infinite[0, 0, 0], infinite[1, 2, 3] = torch.inf, torch.nan
    return [t.to(dtype) for t in (*tricky, infinite)]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a, 12345.0), torch.nan_to_num(b, 12345.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(NAMED))
def test_lifting(name: str, dtype: torch.dtype) -> None:
    function, kind, eps = NAMED[name]
    x, w, b = operands(dtype)
    work = lifted(function, (x, w, b))
    (site,) = work.report.sites
    assert (site.kind, site.spec["eps"], site.spec["dims"]) == (kind, eps, [-1])
    assert [n.op for n in work.program.gm.graph.nodes].count("call_module") == 1
    for value in (x, *hostile(dtype)):
        assert same_bits(work.program.gm(value, w, b), function(value, w, b))


@pytest.mark.parametrize("name", ["llama", "gemma", "cohere", "deberta"])
def test_a_float32_norm_inside_a_float64_model(name: str) -> None:
    """The source is the rounded value: the cast down is no part of the norm."""
    function, kind, eps = NAMED[name]
    x, w, b = operands(torch.float64)
    work = lifted(function, (x, w, b))
    (site,) = work.report.sites
    assert (site.kind, site.spec["source_dtype"], site.spec["eps"]) == (kind, "float32", eps)
    assert torch.equal(work.program.gm(x, w, b), function(x, w, b))


@pytest.mark.parametrize("name", sorted(spellings.RMS_SPELLINGS))
def test_one_description_for_all_spellings(name: str) -> None:
    first = lifted(spellings.RMS_SPELLINGS["pow"], operands(torch.float32))
    other = lifted(spellings.RMS_SPELLINGS[name], operands(torch.float32))
    ((_, expected),) = norms_in(first.program.gm)
    ((_, found),) = norms_in(other.program.gm)
    assert found.spec == expected.spec
    x, w, b = operands(torch.float32)
    assert torch.equal(other.program.gm(x, w, b), spellings.RMS_SPELLINGS[name](x, w, b))


def test_different_functions_have_different_descriptions() -> None:
    specs = set()
    for function in (spellings.llama, spellings.t5, spellings.gemma, spellings.native_rms, spellings.cohere):
        ((_, region),) = norms_in(lifted(function, operands(torch.bfloat16)).program.gm)
        specs.add(region.spec)
    assert len(specs) == 4, "Llama's and T5's are one function; all others differ in a cast point or in kind"


def test_gemma_names_its_offset() -> None:
    (site,) = lifted(spellings.gemma, operands(torch.bfloat16)).report.sites
    assert site.spec["weight_offset"] == 1.0


@pytest.mark.parametrize("name", sorted(spellings.NEAR_MISSES))
def test_near_misses_stay(name: str) -> None:
    work = lifted(spellings.NEAR_MISSES[name], operands(torch.float32))
    assert work.report.sites == []


def test_a_norm_that_reads_written_memory_is_refused() -> None:
    def function(x, w, b):
        y = spellings.native_layer(x, w, b)
        x.add_(1)
        return y

    (site,) = lifted(function, operands(torch.float32)).report.sites
    assert site.refusal is not None
    assert site.refusal.code == "mutated"


def test_norm_of_norm() -> None:
    def function(x, w, b):
        return spellings.native_layer(spellings.llama(x, w, b), w, b)

    work = lifted(function, operands(torch.float32))
    assert [s.kind for s in work.report.sites] == ["rms_norm", "layer_norm"]
    x, w, b = operands(torch.float32)
    assert torch.equal(work.program.gm(x, w, b), function(x, w, b))
