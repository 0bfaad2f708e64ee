"""Norms with stored statistics: rewritten and compiled, against the original in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import normfuse
from tests.passes import affine_beside, affine_broadcast, affine_readers, affine_writers
from tests.passes.affine_cases import Case, randomised
from tests.passes.building import distance, evaluate

pytestmark = pytest.mark.rounding

CASES = [
    *affine_writers.case.found,
    *affine_readers.case.found,
    *affine_broadcast.case.found,
    *affine_beside.case.found,
]
STORED = ("batch_norm", "rep_batch_norm", "unified_norm")
#: Sums of at most 6 * 27 products over three folds in float64, far below this many units of 1.1e-16.
EXACT = 1e-13


def codes(report: normfuse.Report) -> list[str]:
    kept = [s for s in report.sites if s.action == "kept" and s.kind in (*STORED, "instance_norm")]
    return sorted(s.refusal.code for s in kept if s.refusal is not None)


def plain(value):
    """Without nan, and laid out by rows: eager batch norms do not keep the strides that traced ones do."""
    return torch.nan_to_num(value, 7.0).contiguous() if isinstance(value, torch.Tensor) else value


def same(found, wanted) -> bool:
    return distance([plain(v) for v in found], [plain(v) for v in wanted]) <= EXACT


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_rewriting(case: Case) -> None:
    model = case.model()
    wanted = evaluate(copy.deepcopy(model), case.args)
    if model.training or any(m.training for m in model.modules()):
        with torch.no_grad():
            exported = torch.export.export(copy.deepcopy(model), case.args, strict=False)
        made = normfuse.rewrite(exported, verify="off")
    else:
        made = normfuse.rewrite(copy.deepcopy(model), case.args, verify="off")
    assert same(evaluate(made.module(), case.args), wanted)
    assert codes(made.report) == sorted(case.codes)
    assert all(
        s.action == "folded" and not s.becomes
        for s in made.report.sites
        if s.kind in STORED and not s.refusal
    )


#: Where a compiled graph still shows what export has made functional.
COMPILED = {"statistics_written_by_the_graph": ["weight_mutated"]}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if i % 6 else []) for i, c in enumerate(CASES)],
)
def test_compiling(case: Case) -> None:
    model = case.model()
    reference = copy.deepcopy(model)
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options={"normfuse.inner": "eager"})
    for _ in range(2):
        assert same(evaluate(fast, case.args), evaluate(reference, case.args))
    if case.name != "embedding":
        assert codes(normfuse.last_report()) == COMPILED.get(case.name, sorted(case.codes))


def test_the_comparison_can_fail() -> None:
    case = next(c for c in CASES if c.name == "never_trained")
    model = case.model()
    wanted = evaluate(model, case.args)
    with torch.no_grad():
        model.norm.bias[2] += 1e-9
    assert not same(evaluate(model, case.args), wanted)


def test_every_code_has_a_case() -> None:
    found = {code for case in CASES for code in case.codes}
    assert found >= {
        "batch_statistics", "computed_statistics", "bad_statistics", "mutated", "raw_reader", "zero_padding",
        "no_bias", "shift_blocked", "nonlinear_writer", "channel_mix", "stream_enters_graph",
    }  # fmt: skip


def test_refusals_name_both_sides() -> None:
    case = next(c for c in CASES if c.name == "zero_padding")
    (site,) = normfuse.rewrite(case.model(), case.args).report.sites
    assert "before the norm" in site.refusal.message
    assert "after it" in site.refusal.message
    assert "reflect" in site.refusal.remedy


def test_a_norm_that_is_returned_is_refused_for_that() -> None:
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5)).eval()
    (site,) = normfuse.rewrite(model, (torch.randn(4, 5),)).report.sites
    assert "after it, the normalized values are returned" in site.refusal.message


def test_channel_counts_that_disagree_fail_as_in_eager() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(5)).eval()
    with pytest.raises(normfuse.CaptureError):
        normfuse.rewrite(model, (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize(("dtype", "ratio"), [(torch.float32, 3.0), (torch.bfloat16, 9.0)])
def test_large_means_are_not_left_to_readers(dtype: torch.dtype, ratio: float) -> None:
    """Folded, the errors would be ``sqrt(1 + ratio ** 2)`` times as large, as they are in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 48)).eval()
    model[0].running_mean.fill_(ratio)
    x = (torch.randn(256, 64) + ratio).to(dtype)
    report = normfuse.rewrite(model.to(dtype), (x,)).report
    assert [s.refusal.code for s in report.sites] == ["cancellation"]
    model[0].running_mean.fill_(ratio / 6)
    made = normfuse.rewrite(model, (x,))
    assert made.report.after == {}
    assert normfuse.verify(model, made, (x - ratio * 5 / 6,)).ok
    assert normfuse.rewrite(model.double(), (x.double(),)).report.after == {}


class FrozenRows(nn.Module):
    """``FrozenBatchNorm2d``'s arithmetic on rows: on vectors that are reshaped, or on reshaped vectors."""

    def __init__(self, mean: float, early: bool) -> None:
        super().__init__()
        held = {"weight": torch.ones(64), "bias": torch.zeros(64), "running_var": torch.ones(64)}
        for name, value in (*held.items(), ("running_mean", torch.full((64,), mean))):
            self.register_buffer(name, value)
        self.early, self.linear = early, nn.Linear(64, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1) if self.early else (-1,)
        weight, bias = self.weight.reshape(shape), self.bias.reshape(shape)
        scale = weight * (self.running_var.reshape(shape) + 1e-5).rsqrt()
        shift = bias - self.running_mean.reshape(shape) * scale
        return self.linear(x * scale.reshape(1, -1) + shift.reshape(1, -1))


@pytest.mark.parametrize("early", [False, True])
def test_a_mean_that_is_written_into_the_shift_is_seen(early: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 64) + 3
    (site,) = normfuse.rewrite(FrozenRows(3.0, early).eval(), (x,)).report.sites
    assert (site.spec["stored"], site.spec["eps"]) == (["mean", "variance"], 1e-5)
    assert site.refusal.code == "cancellation"
    assert normfuse.rewrite(FrozenRows(0.5, early).eval(), (x,)).report.after == {}


class Large(nn.Module):
    """Beside a norm that makes values larger, in the place of ``run``."""

    def __init__(self, run: Callable[..., torch.Tensor], weight: float, mean: float, bias: float) -> None:
        super().__init__()
        self.conv, self.norm, self.run = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4), run
        with torch.no_grad():
            self.conv.weight.fill_(weight)
            self.norm.running_var.fill_(1e-3)
            self.norm.running_mean.fill_(mean)
            self.norm.bias.fill_(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


PLACES = {
    "before": lambda s, x: s.norm(s.conv(x)),
    "behind": lambda s, x: s.conv(s.norm(x)),
    "beside": lambda s, x: torch.relu(s.conv(x) + s.norm(x)),
}


@pytest.mark.parametrize(
    ("place", "weight", "mean", "bias"),
    [
        ("before", 3e3, 0.0, 0.0), ("before", 1.0, 3e3, 0.0), ("behind", 3e3, 0.0, 0.0),
        ("behind", 1.0, 0.0, 3e4), ("beside", 65504.0, 0.0, 0.0),
    ],
)  # fmt: skip
def test_folded_weights_that_overflow_are_refused(
    place: str, weight: float, mean: float, bias: float
) -> None:
    x = torch.rand(2, 4, 5)
    model = Large(PLACES[place], weight, mean, bias).eval()
    wide = normfuse.rewrite(model, (x,), verify="off").report
    assert wide.after == {}
    model.half()
    if place == "beside":
        model.norm.weight.data.fill_(20.0)
    made = normfuse.rewrite(model, (x.half(),), verify="off")
    assert [s.refusal.code for s in made.report.sites] == ["overflow"]
    assert torch.equal(made.module()(x.half()), model(x.half()))


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(5, 3, 2, 2)), nn.BatchNorm2d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.weight.reshape(1, 5, -1)
        weight = torch.nn.functional.batch_norm(flat, None, None, training=True, eps=1e-6)
        return self.norm(torch.nn.functional.conv2d(x, weight.reshape_as(self.weight)))


def test_a_standardised_weight_is_computed_once() -> None:
    model = Standardised().double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,))
    assert {s.kind: s.action for s in made.report.sites} == {
        "weight_standardization": "folded", "batch_norm": "folded",
    }  # fmt: skip
    with torch.no_grad():
        assert same([made.module()(x)], [model(x)])
    targets = [str(n.target) for n in made.program.graph.nodes if n.op == "call_function"]
    assert targets == ["aten.conv2d.default"]


@pytest.mark.parametrize("affine", [False, True])
def test_norms_by_the_statistics_of_the_batch_are_found_in_core_operators(affine: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.InstanceNorm2d(5, affine=affine), nn.BatchNorm2d(5))
    model[2].track_running_stats = False
    model[2].running_mean = model[2].running_var = None
    x = torch.randn(2, 3, 4, 4)
    program = torch.export.export(model.eval(), (x,)).run_decompositions()
    made = normfuse.rewrite(program)
    kept = [(s.kind, s.refusal.code) for s in made.report.sites if s.refusal is not None]
    assert kept == [("instance_norm", "no_rule"), ("batch_norm", "batch_statistics")]
    assert {s.spelling for s in made.report.sites} == {"_native_batch_norm_legit, getitem"}
    with torch.no_grad():
        assert torch.equal(made.module()(x), program.module()(x))


def test_a_standardised_weight_is_computed_once_in_core_operators() -> None:
    model = Standardised().double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    made = normfuse.rewrite(torch.export.export(model, (x,)).run_decompositions())
    assert [(s.kind, s.action) for s in made.report.sites] == [
        ("weight_standardization", "folded"), ("batch_norm", "folded"),
    ]  # fmt: skip
    with torch.no_grad():
        assert same([made.module()(x)], [model(x)])


class Beside(nn.Module):
    """A norm of a convolution and its input, and one that is taken from a convolution."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.norm = kind(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6)
        self.second, self.other = kind(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.first(x) + x))
        return torch.relu(self.second(h) - self.other(h))


@pytest.mark.parametrize(("kind", "codes_left"), [(nn.Conv2d, []), (nn.ConvTranspose2d, ["raw_reader"] * 2)])
def test_only_a_convolution_takes_what_stands_beside_it_in_core_operators(
    kind: type[nn.Module], codes_left: list[str]
) -> None:
    model = randomised(Beside(kind))
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    made = normfuse.rewrite(torch.export.export(model, (x,)).run_decompositions(), verify="off")
    assert codes(made.report) == codes_left
    with torch.no_grad():
        assert same([made.module()(x)], [model(x)])


def test_with_gradients_norms_beside_weights_fold_and_train_alike() -> None:
    model = randomised(Beside(nn.Conv2d))
    reference, x = copy.deepcopy(model), torch.randn(2, 6, 5, 5, dtype=torch.float64)
    options = {"normfuse.inner": "aot_eager", "normfuse.policy": "convert"}
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options=options)
    found, wanted = fast(x), reference(x)
    assert same([found.detach()], [wanted.detach()])
    assert codes(normfuse.last_report()) == []
    for made in (found, wanted):
        made.square().sum().backward()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-10, atol=1e-10 * float(other.grad.norm()))


def test_with_gradients_a_standardised_weight_stays() -> None:
    model, reference = Standardised().double().eval(), Standardised().double().eval()
    reference.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options={"normfuse.inner": "aot_eager"})
    for call in (fast, reference):
        call(x).square().sum().backward()
    found, wanted = ([p.grad for p in m.parameters()] for m in (model, reference))
    assert same(found, wanted)
    kept = [s.refusal.code for s in normfuse.last_report().sites if s.kind == "weight_standardization"]
    assert kept == ["grad_enabled"]


class Scaled(nn.Module):
    """A standardised weight that an input scales."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, 2, 2))

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(x, torch.nn.functional.layer_norm(self.weight, (3, 2, 2), scale))


def test_a_standardised_weight_that_an_input_scales_stays_with_a_reason() -> None:
    report = normfuse.rewrite(Scaled().eval(), (torch.randn(2, 3, 5, 5), torch.rand(3, 2, 2))).report
    (site,) = report.sites
    assert (site.kind, site.action) == ("weight_standardization", "kept")
    assert site.refusal is not None
    assert site.refusal.code == "computed_statistics"


def test_switched_off_by_name() -> None:
    case = next(c for c in CASES if c.name == "zero_variance")
    report = normfuse.rewrite(case.model(), case.args, skip=["fold_affine"]).report
    assert [s.refusal.code for s in report.sites] == ["not_asked"]
    assert report.after == {"batch_norm": 1}


def test_folded_weights_take_the_place_of_the_old_ones() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    program = normfuse.rewrite(model, (torch.randn(2, 3, 8, 8),)).program
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert targets == {"aten.conv2d.default"}
    assert {"0.weight", "0.bias"} <= set(program.state_dict)


class FrozenThenLayerNorm(nn.Module):
    """A norm whose shift is computed from other weights, behind a convolution, before a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 4, 1, bias=False), nn.LayerNorm(4)
        for name in ("weight", "bias", "mean"):
            self.register_buffer(name, torch.randn(4, 1))
        self.register_buffer("var", torch.rand(4, 1) + 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * torch.rsqrt(self.var + 1e-5)
        return self.norm((self.conv(x) * scale + (self.bias - self.mean * scale)).mT)


def test_folded_weights_are_centred_as_a_whole() -> None:
    """Not by what they were folded from: that would put the model's own algebra between two folds."""
    torch.manual_seed(0)
    model, x = FrozenThenLayerNorm().double().eval(), torch.randn(2, 4, 5, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,))
    assert [s.action for s in made.report.sites] == ["folded", "converted"]
    with torch.no_grad():
        assert same([made.module()(x)], [model(x)])


@pytest.mark.parametrize("between", [False, True])
def test_a_value_that_is_written_between_its_readers_keeps_its_norm(between: bool) -> None:
    """The convolution beside the norm reads the values as they were before; a term may stand between."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = self.conv(x)
            x.mul_(2)
            normed = self.norm(x)
            return torch.relu((normed + torch.tanh(x)) + made if between else made + normed)

    model, x = Written().double().eval(), torch.randn(2, 6, 5, dtype=torch.float64)
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options={"normfuse.inner": "eager"})
    with torch.no_grad():
        assert same([fast(x.clone())], [model(x.clone())])
    assert normfuse.last_report().after == {"batch_norm": 1}
