"""CRMSNorm in both bases, and rotations, on models of the library."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch.utils._pytree import tree_leaves
from transformers import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

import bench.corpus
import normfuse
from bench.corpus.rewriting import by_rewrite
from bench.corpus.worker import runnable
from tests.models.test_transformers import CHANGED, JUDGED, compiled, distance
from tests.models.zoo import ZOO, build

BASES = ("drop_last", "orthonormal")
CRMS = [name for name in CHANGED if "rms_norm" not in ZOO[name].found]
#: With a head of its own, with an explicit centring, with patches, and one that keeps norms.
USUAL = ("gpt_neox", "gpt2", "vit", "bloom")
TURNED = ("gpt2", "opt", "llama", "gpt_neox", "vit")


def _rewritten() -> dict[str, dict[str, str]]:
    """The row of every architecture of which some norm becomes an RMSNorm, as rewritten to one."""
    table = Path(bench.corpus.__file__).parents[1] / "results" / "population.csv"
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return {row["architecture"]: row for row in rows if int(row["converted"] or 0)}


REWRITTEN = _rewritten()
#: Where roundings of the coordinates that are stored count more often than that in the basis drop_last.
LARGER = {"maskformer": 1.05}


def usual(name: str) -> list[pytest.MarkDecorator]:
    return [] if name in USUAL else [pytest.mark.slow]


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("name", [pytest.param(name, marks=usual(name)) for name in CRMS])
def test_what_becomes_an_rms_norm_becomes_a_crms_norm(name: str, basis: str) -> None:
    model, args, kwargs = build(name, torch.float64)
    fast = compiled(model, target="crms_norm", crms_basis=basis)
    with torch.no_grad():
        # What computes in float32 inside is as far from itself as rounding to it makes it.
        bound = 1e-6 if ZOO[name].float32_inside else 1e-11
        assert distance(model(*args, **kwargs), fast(*args, **kwargs)) <= bound
    kinds = {("crms_norm" if kind == "rms_norm" else kind): n for kind, n in ZOO[name].after.items()}
    assert normfuse.last_report(fast).after == kinds


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name, dtype, marks=[] if (name, dtype) == ("gpt2", torch.bfloat16) else [pytest.mark.slow]
        )
        for name, dtype in JUDGED
        if name in CRMS
    ],
)
def test_it_is_no_further_from_float64(name: str, dtype: torch.dtype, basis: str) -> None:
    """In drop_last the rounding error of a coordinate counts for the last one, too: root 2 times in all."""
    model, args, kwargs = build(name, dtype)
    fast = compiled(model, target="crms_norm", crms_basis=basis)
    with torch.no_grad():
        fast(*args, **kwargs)
        result = normfuse.verify(model, fast, args, kwargs)
    assert result.error_ratio <= (1.5 if basis == "orthonormal" else 1.5 * 2**0.5), str(result)


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("architecture", REWRITTEN)
def test_every_architecture_that_converts(architecture: str, basis: str) -> None:
    """In float64 within 1e-11 of the model, in the others within the error that verify allows.

    A stream of which a part would not change keeps its RMSNorms.
    """
    if architecture not in CONFIG_MAPPING:
        pytest.skip("the installed transformers does not have it")
    found = runnable(architecture, REWRITTEN[architecture]["recipe"])
    assert not isinstance(found, str), found
    _, model, inputs, _ = found
    row = by_rewrite(model, inputs, lambda *_: None, target="crms_norm", crms_basis=basis)
    assert row["converted"], row["after"]
    assert row["float64"]["status"] == "ok" or _is_unknown(architecture, "float64", row), row["float64"]
    rows = max((t.shape[0] * t.shape[1] for t in tree_leaves(inputs) if _has_rows(t)), default=1)
    times = 1.0 if basis == "orthonormal" else _of_the_last(model, rows) * LARGER.get(architecture, 1.0)
    for dtype in ("float32", "bfloat16"):
        assert _is_near(row[dtype], times) or _is_unknown(architecture, dtype, row), row[dtype]


def _of_the_last(model: torch.nn.Module, rows: int) -> float:
    """How many times the rounding of stored coordinates counts where a reader takes ``W - w`` for ``W``.

    The coordinate that is left out is minus the sum of the d - 1 others. Their roundings reach the reader by
    W, and their sum by w, the last column: ``sqrt(1 + d |w|^2 / |W|^2 * s^2)``, where ``s`` is one normal
    number a row, so that the mean of its square is ``chi2(rows) / rows``; one in a thousand is larger than
    what is taken.
    """
    linear = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    weights = linear + [m.weight.t() for m in model.modules() if isinstance(m, Conv1D)]
    with torch.no_grad():
        shares = [float(w.shape[1] * w[:, -1].square().sum() / w.square().sum()) for w in weights]
    return float((1 + max(1.0, *shares) * chi2.ppf(0.999, rows) / rows) ** 0.5)


def _has_rows(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 1


def _is_near(found: dict[str, Any], times: float) -> bool:
    return found["status"] in ("ok", "far") and found.get("ratio", 0) <= times * found.get("allowed", 0)


def _is_unknown(architecture: str, dtype: str, row: dict[str, Any]) -> bool:
    """Whether the model does not run in this dtype, or could not be judged in it as rewritten to RMSNorm."""
    return bool(row[dtype]["status"] == REWRITTEN[architecture][dtype] != "ok")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [pytest.param(name, marks=usual(name)) for name in TURNED])
def test_a_random_rotation(name: str, seed: int) -> None:
    model, args, kwargs = build(name, torch.float32)
    report = normfuse.rewrite(model, args, kwargs, verify="off").report
    width = next(p for n, p in model.named_parameters() if "norm" in n or "ln_f" in n).shape[-1]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    made = normfuse.rewrite(model, args, kwargs, verify="sites", rotation=rotation)
    assert made.report.after == report.after
    assert all("rotate" in site.rules for site in made.report.sites), str(made)
    with torch.no_grad():
        result = normfuse.verify(model, made, args, kwargs)
    assert result.ok, str(result)
    assert result.error_ratio <= 1.5


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("name", ["vit", pytest.param("opt", marks=pytest.mark.slow)])
def test_verification_by_sites_undoes_nothing_for_its_basis(name: str, basis: str) -> None:
    """In drop_last one coordinate has the errors of all others; what reads it is judged instead."""
    model, args, kwargs = build(name, torch.float32)
    report = normfuse.rewrite(model, args, kwargs, target="crms_norm", crms_basis=basis).report
    assert report.errors
    assert report.after == {"crms_norm": 5}
