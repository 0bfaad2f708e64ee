"""Norms are recognised whatever their spelling, nothing is mistaken for one, and lifting changes no bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.corpus.formula import evaluate
from normfuse.capture.exported import program_of
from normfuse.ir import norms_in
from normfuse.ir.spec import NormSpec
from normfuse.options import Options
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.lift import lift
from normfuse.passes.work import Work
from tests.patterns import spellings
from tests.patterns.capturing import lifted

pytestmark = pytest.mark.rounding

Spelling = Callable[..., torch.Tensor]


def centred(norm: Spelling) -> Spelling:
    """A norm of what somebody centred already, in operators of its own."""
    return lambda x, *more: norm(x - x.mean(-1, keepdim=True), *more)


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
    "native layer, centred before": (centred(spellings.native_layer), "layer_norm", 1e-5),
    "native rms, centred before": (centred(spellings.native_rms), "rms_norm", 1e-6),
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


@pytest.mark.parametrize("name", sorted(spellings.LAYER_SPELLINGS))
def test_one_description_for_all_spellings_of_layer_norm(name: str) -> None:
    x, w, b = operands(torch.float32)
    ((_, expected),) = norms_in(lifted(spellings.LAYER_SPELLINGS["native"], (x, w, b)).program.gm)
    work = lifted(spellings.LAYER_SPELLINGS[name], (x, w, b))
    ((_, found),) = norms_in(work.program.gm)
    assert found.spec == expected.spec
    assert torch.equal(work.program.gm(x, w, b), spellings.LAYER_SPELLINGS[name](x, w, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(spellings.FORMS))
def test_forms(name: str, dtype: torch.dtype) -> None:
    function, expected = spellings.FORMS[name]
    x, w, b = operands(dtype)
    work = lifted(function, (x, w, b))
    (site,) = work.report.sites
    assert site.refusal is None
    assert {k: rounded(site.spec[k]) for k in expected} == {k: rounded(v) for k, v in expected.items()}
    for value in (x, *hostile(dtype)):
        assert same_bits(work.program.gm(value, w, b), function(value, w, b))


def rounded(value: object) -> object:
    """A number to fourteen digits."""
    return float(f"{value:.14g}") if isinstance(value, float) else value


EVERYTHING = {
    **spellings.RMS_SPELLINGS,
    **spellings.LAYER_SPELLINGS,
    **{k: f for k, (f, _) in spellings.FORMS.items()},
}


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_the_description_is_the_function(name: str) -> None:
    """Computed from its words in float64; 1e-12 is 4,500 ulps for sums of eight numbers."""
    dtype = torch.float32 if "factor" in name else torch.float64
    ((node, region),) = norms_in(lifted(EVERYTHING[name], operands(dtype)).program.gm)
    values = [torch.randn(a.meta["val"].shape, dtype=a.meta["val"].dtype) + 2 for a in node.args]
    spec = region.spec
    roles = ["source", *(["scale"] if spec.has_scale else []), *(["shift"] if spec.has_shift else [])]
    wanted = evaluate(spec, dict(zip(roles, values, strict=True)))
    assert torch.allclose(region(*values).double(), wanted, rtol=float32_or(1e-12, spec), atol=0)


def float32_or(tolerance: float, spec: NormSpec) -> float:
    """A norm that computes in float32 whatever its input is: eight roundings of 6e-8."""
    return 5e-7 if torch.float32 in (spec.compute_dtype, spec.factor_dtype) else tolerance


def test_modulation_is_described() -> None:
    for function, expected in (
        (spellings.gated, "gate"),
        (spellings.modulated, "scale and shift"),
        (spellings.llama, ""),
    ):
        (site,) = lifted(function, operands(torch.bfloat16)).report.sites
        assert site.modulation == expected


def test_precision_that_changes_the_value() -> None:
    """A mean that is rounded to half precision is another mean."""
    work = lifted(spellings.mixed_precision, operands(torch.bfloat16))
    assert norms_in(work.program.gm) == []
    assert [s.kind for s in work.report.sites] == ["unknown_norm"]
    (site,) = lifted(spellings.mixed_precision, operands(torch.float32)).report.sites
    assert site.kind == "layer_norm"


def test_a_weight_before_the_norm_is_no_weight_of_the_norm() -> None:
    def function(x, w, b):
        h = (1 + w) * x
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)

    work = lifted(function, operands(torch.float32))
    ((node, region),) = norms_in(work.program.gm)
    assert not region.spec.has_scale
    assert region.operands(node).source.target is torch.ops.aten.mul.Tensor


def test_rounding_the_factor_is_another_function() -> None:
    def exact(x, w, b):
        h = x.float()
        return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    specs = {
        dtype: [
            norms_in(lifted(f, operands(dtype)).program.gm)[0][1].spec
            for f in (exact, spellings.rounded_factor)
        ]
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(set(specs[torch.float32])) == 1
    assert len(set(specs[torch.bfloat16])) == 2


def test_a_mask_is_no_weight() -> None:
    def function(x, w, mask):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * mask[..., None] * w

    (site,) = lifted(function, (torch.randn(2, 5, 8), torch.randn(8), torch.ones(2, 5))).report.sites
    assert not site.spec["has_scale"]


def test_weight_standardization() -> None:
    def function(x, w):
        mean = w.mean((1, 2, 3), keepdim=True)
        std = (w.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return torch.nn.functional.conv2d(x, (w - mean) / std)

    (site,) = lifted(function, (torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3))).report.sites
    assert (site.kind, site.spec["dims"]) == ("weight_standardization", [-3, -2, -1])


BAD = {
    "complex_input": torch.randn(2, 8, dtype=torch.complex64),
    "integer_input": torch.arange(16).reshape(2, 8),
    "empty_input": torch.randn(0, 8),
}


@pytest.mark.parametrize("code", sorted(BAD))
def test_bad_input_has_a_reason(code: str) -> None:
    def function(x, w):
        return x * torch.rsqrt((x * x).sum(-1, True) + 1e-6)

    work = lifted(function, (BAD[code], torch.ones(8)))
    (site,) = work.report.sites
    assert site.refusal is not None
    assert (site.refusal.code, site.action) == (code, "kept")
    assert site.refusal.message
    assert norms_in(work.program.gm) == []


@pytest.mark.parametrize("reads", ["result", "statistics"])
def test_statistics_that_are_read_keep_a_norm(reads: str) -> None:
    def function(x, w, b):
        result, _, rstd = torch.native_layer_norm(x, (8,), w, b, 1e-5)
        return (result, rstd) if reads == "statistics" else (result,)

    work = lifted(function, operands(torch.float32))
    (site,) = work.report.sites
    code = None if site.refusal is None else site.refusal.code
    assert (site.kind, code) == ("layer_norm", "statistics_read" if reads == "statistics" else None)
    assert len(norms_in(work.program.gm)) == (reads == "result")


def test_masked_statistics_are_refused_by_name() -> None:
    def function(x, mask):
        mean = torch.masked.mean(x, mask=mask > 0, dim=(2, 3), keepdim=True)
        var = torch.masked.var(x, mask=mask > 0, dim=(2, 3), keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(var + 1e-5)

    work = lifted(function, (torch.randn(2, 2, 4, 6), torch.ones(2, 2, 4, 6)))
    (site,) = work.report.sites
    assert site.refusal is not None
    assert site.refusal.code == "masked_statistics"
    assert norms_in(work.program.gm) == []


def test_a_norm_of_masked_values_is_a_norm() -> None:
    def function(x, mask):
        h = torch.where(mask > 0, x, 0.0)
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)

    (site,) = lifted(function, (torch.randn(2, 8), torch.ones(2, 8))).report.sites
    assert site.refusal is None


@pytest.mark.parametrize("name", ["multiply", "divide"])
def test_other_names_of_operators(name: str) -> None:
    def function(x, w, b):
        root = torch.sqrt(torch.multiply(x, x).mean(-1, True) + 1e-6)
        h = torch.divide(x, root) if name == "divide" else torch.multiply(x, torch.reciprocal(root))
        return torch.multiply(h, w)

    ((_, expected),) = norms_in(lifted(spellings.RMS_SPELLINGS["pow"], operands(torch.float32)).program.gm)
    ((_, found),) = norms_in(lifted(function, operands(torch.float32)).program.gm)
    assert found.spec == expected.spec


def test_a_symbolic_axis_has_a_reason() -> None:
    """And a symbolic batch has none: the norm is lifted, with the sizes that its spelling reads."""
    model = Symbolic()
    for axis, codes in ((0, []), (1, ["symbolic_axis"] * 2)):
        shapes = ({axis: torch.export.Dim("n", min=2, max=64)},)
        exported = torch.export.export(model, (torch.randn(4, 8),), dynamic_shapes=shapes)
        work = Work(program_of(exported), Options())
        canonicalize(work.program.gm)
        lift(work)
        assert [s.refusal.code for s in work.report.sites if s.refusal] == codes
        assert len(work.report.sites) == 2
        work.program.gm.recompile()
        x = torch.randn(4, 8)
        assert torch.equal(work.program.gm(x)[0], model(x))


class Unbiased(torch.nn.Module):
    """By the variance of a sample: of groups of channels, with a gate, or of all that stands in a place."""

    def __init__(self, gates: bool) -> None:
        super().__init__()
        self.gates = gates

    def forward(self, x):
        n, c, h, w = x.shape
        parts = x.view(n, 2, c // 2, h, w)
        if self.gates:
            root = (parts.var((2, 3, 4), keepdim=True) + 1e-5).sqrt().expand(n, 2, c // 2, h, w)
            return x * torch.sigmoid(x) / root.reshape(n, c, h, w)
        centred = parts - parts.mean((2, 3, 4), keepdim=True)
        return (centred / torch.sqrt(parts.var((2, 3, 4), keepdim=True) + 1e-5)).view(n, c, h, w)


@pytest.mark.parametrize(("gates", "code"), [(True, "nonlinear_norm"), (False, "symbolic_axis")])
def test_the_variance_of_a_sample_over_open_axes_is_no_secret(gates: bool, code: str) -> None:
    """How much it is larger than the mean square depends on how many elements there are."""
    shapes = ({2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)},)
    exported = torch.export.export(Unbiased(gates), (torch.randn(2, 8, 5, 6),), dynamic_shapes=shapes)
    work = Work(program_of(exported), Options())
    canonicalize(work.program.gm)
    lift(work)
    assert [site.refusal and site.refusal.code for site in work.report.sites] == [code]


class Symbolic(torch.nn.Module):
    def forward(self, x):
        h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return torch.nn.functional.normalize(h, dim=-1)


def test_eps_as_a_graph_value() -> None:
    def function(x, eps):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    x, eps = torch.randn(2, 8), torch.tensor(1e-3, dtype=torch.float64)
    work = lifted(function, (x, eps))
    ((node, region),) = norms_in(work.program.gm)
    assert region.spec.eps is None
    assert region.operands(node).eps is not None
    assert torch.equal(work.program.gm(x, eps), function(x, eps))


def test_a_factor_that_also_normalizes_is_one_norm() -> None:
    """The same root divides the source itself and a linear image of it."""

    def function(x, w):
        factor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * factor, torch.nn.functional.linear(x, w) * factor

    (site,) = lifted(function, (torch.randn(2, 8), torch.randn(3, 8))).report.sites
    assert site.spec["returns"] == "value"


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
    assert norms_in(work.program.gm) == []
    assert {s.kind for s in work.report.sites} <= {"unknown_norm"}


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
