"""Numbers before and behind norms: rewritten and compiled, against the original in float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normfuse
from tests.passes import factor_cases
from tests.passes.affine_cases import Case
from tests.passes.building import distance, evaluate, normal

pytestmark = pytest.mark.rounding

#: A product that is not rounded, sums over six channels, a root and a quotient: some units of 1.1e-16.
EXACT = 1e-14


def words(report: normfuse.Report) -> list[str]:
    """For each norm what it took, or why it took nothing."""
    refusals = [site.refusals.get("fold_factor") for site in report.sites]
    told = ["" if refusal is None else refusal.code for refusal in refusals]
    return [
        "took" if "fold_factor" in site.rules else word for site, word in zip(report.sites, told, strict=True)
    ]


def apart(model, made, args) -> float:
    """The largest relative L2 difference, where neither is nan."""
    found, wanted = evaluate(made, args), evaluate(copy.deepcopy(model), args)
    return distance([v.nan_to_num(7.0) for v in found], [v.nan_to_num(7.0) for v in wanted])


def products(gm: torch.fx.GraphModule) -> list[str]:
    targets = (torch.ops.aten.mul.Tensor, torch.ops.aten.div.Tensor, torch.ops.aten.neg.default)
    return [n.name for n in gm.graph.nodes if n.target in targets]


@pytest.mark.parametrize("one", factor_cases.case.found, ids=lambda c: c.name)
def test_rewriting(one: Case) -> None:
    model = one.model()
    made = normfuse.rewrite(copy.deepcopy(model), one.args, verify="off", only=["fold_factor"])
    assert apart(model, made.module(), one.args) <= EXACT
    assert words(made.report) == list(one.codes)


@pytest.mark.parametrize("one", factor_cases.case.found, ids=lambda c: c.name)
def test_all_rules(one: Case) -> None:
    model = one.model()
    made = normfuse.rewrite(copy.deepcopy(model), one.args)
    assert apart(model, made.module(), one.args) <= EXACT
    assert "reverted" not in {site.action for site in made.report.sites}


TOOK = ["took"]


class Scaled(nn.Module):
    """A norm of a product with a number or a weight of one entry."""

    def __init__(self, by: float | torch.Tensor | nn.Parameter, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        if isinstance(by, torch.Tensor) and not isinstance(by, nn.Parameter):
            self.register_buffer("by", by)
        else:
            self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x * self.by)


def rms(**kwargs) -> nn.Module:
    return nn.RMSNorm(6, **{"eps": 0.1, **kwargs})


def compiled(model: nn.Module, **options):
    options = {"normfuse.inner": "eager", **options}
    return torch.compile(copy.deepcopy(model), backend=normfuse.normfuse_backend, options=options)


def test_a_product_that_norms_alone_read_is_gone() -> None:
    made = normfuse.rewrite(Scaled(3.0, rms()).double().eval(), (normal(4, 6),), verify="off")
    assert products(made.module()) == []


@pytest.mark.parametrize("by", [0.5, -0.5])
def test_readers_take_what_no_weight_of_the_norm_can(by: float) -> None:
    """The number behind, and the sign of the number before."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lin(F.rms_norm(x * by, (6,), None, 0.1) / 3.0)

    model, x = Net().double().eval(), normal(4, 6)
    made = normfuse.rewrite(copy.deepcopy(model), (x,))
    assert made.report.sites[0].rules == ["fold_factor", "fold_scale"]
    assert products(made.module()) == []
    assert apart(model, made.module(), (x,)) <= EXACT


def entry(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("make", [entry, lambda v: entry(v).view(1, 1), lambda v: nn.Parameter(entry(v))])
def test_a_weight_of_one_entry_makes_eps_an_operand_where_nothing_is_lost(make) -> None:
    model, x = Scaled(make(3.0), rms()).double().eval(), normal(4, 6)
    offline = normfuse.rewrite(copy.deepcopy(model), (x,), verify="off")
    assert words(offline.report) == ["eps_operand"]
    fast = compiled(model)
    assert apart(model, fast, (x,)) <= EXACT
    assert words(normfuse.last_report()) == TOOK
    for value in (0.5, 7.0, -2.0, 0.0, 2.0**200, 4.0):
        with torch.no_grad():
            model.by.fill_(value)
            fast.by.fill_(value)
        assert apart(model, fast, (x,)) <= EXACT, value


@pytest.mark.parametrize("value", [-3.0, 0.0, 2.0**200, float("nan")])
def test_a_weight_that_may_not_multiply(value: float) -> None:
    model, x = Scaled(entry(value), rms()).double().eval(), normal(4, 6)
    assert apart(model, compiled(model), (x,)) <= EXACT
    assert words(normfuse.last_report()) == ["factor_range"]


def test_one_entry_divides_and_is_shared() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("by", entry(3.0))
            self.first, self.second = rms(), rms(eps=0.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(2.0 * (x / self.by)) + self.second(x * self.by) + self.by

    model, x = Shared().double().eval(), normal(4, 6)
    assert apart(model, compiled(model), (x,)) <= EXACT
    assert words(normfuse.last_report()) == [*TOOK, *TOOK]
    assert normfuse.last_report().folded == 1  # of an eps of zero nothing is made


def error(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float((value.detach().double() - exact).norm() / exact.norm())


#: What is not rounded to the dtype any more leaves the norm's own rounding, which is at most that of before.
BUDGET = 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by", [-0.3, 0.02, 1.0])
def test_narrow_dtypes(by: float, dtype: torch.dtype) -> None:
    model, x = (
        Scaled(by, nn.LayerNorm(64)).eval(),
        torch.randn(256, 64, generator=torch.Generator().manual_seed(0)),
    )
    exact = copy.deepcopy(model).double()(x.to(dtype).double()).detach()
    model, x = model.to(dtype), x.to(dtype)
    made = normfuse.rewrite(copy.deepcopy(model), (x,), verify="off", only=["fold_factor"])
    assert words(made.report) == TOOK
    assert error(made.module()(x), exact) <= BUDGET * error(model(x), exact)


@pytest.mark.parametrize(
    ("norm", "by", "word"),
    [
        (lambda h: F.rms_norm(h, (6,)), 1.5, "narrow_values"),
        (lambda h: F.rms_norm(h, (6,)), 0.5, "took"),
        (lambda h: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 0.1), 0.5, "narrow_values"),
        (lambda h: F.rms_norm(h.float(), (6,)), 0.5, "took"),
        (lambda h: F.rms_norm(h.bfloat16(), (6,)), 0.5, "took"),
    ],
)
def test_float16_keeps_what_keeps_values_in_range(norm, by: float, word: str) -> None:
    """With 0.5 no square of a float16 overflows that did not; with 1.5 an infinity would become a number."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return norm(x * by).sin()

    x = torch.randn(4, 6).half()
    made = normfuse.rewrite(Net().eval(), (x,), verify="off")
    assert words(made.report) == [word]
    for size in (1.0, 4e4):
        given = (x.sign() * size).half()
        assert torch.equal(made.module()(given).isfinite(), Net()(given).isfinite())


class Mixed(nn.Module):
    """An RMSNorm whose weight, bias and eps are those given, where they are."""

    def __init__(self, run, **held: torch.Tensor) -> None:
        super().__init__()
        self.run = run
        for name, value in held.items():
            self.register_buffer(name, value)

    def norm(self, x: torch.Tensor, eps: float | torch.Tensor = 0.1) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)


W, NARROW = torch.linspace(0.3, 1.7, 6), torch.bfloat16


@pytest.mark.parametrize(
    ("run", "held", "word"),
    [
        (lambda s, x: s.norm(x) * s.w / 3.0, {"w": W.to(NARROW)}, "narrow_values"),
        (lambda s, x: (s.norm(x) * s.w + s.b) / 3.0, {"w": W, "b": W.to(NARROW)}, "narrow_values"),
        (lambda s, x: s.norm(x * -3.0) * s.w, {"w": W.to(NARROW)}, "took"),
        (lambda s, x: s.norm(1e5 * x, s.e) * s.w, {"w": W, "e": torch.tensor(1e-5).half()}, "eps_operand"),
        (lambda s, x: s.norm(x * 3.0 + s.t), {"t": W.to(NARROW)}, "narrow_values"),
        (lambda s, x: s.norm(x * 3.0 + s.t), {"t": torch.arange(6)}, "weight_dtype"),
        (lambda s, x: s.norm(x * 3.0 + s.t), {"t": torch.arange(6) > 2}, "weight_dtype"),
    ],
    ids=["weight", "bias", "sign", "eps", "term", "whole term", "mask"],
)
def test_no_number_is_rounded_to_a_narrower_dtype(run, held, word: str) -> None:
    """Values in float32 beside weights in fewer bits, which hold what they hold exactly."""
    model, x = Mixed(run, **held).eval(), torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    wide = {name: value.double() for name, value in held.items()}
    exact = Mixed(run, **wide)(x.double())
    made = normfuse.rewrite(copy.deepcopy(model), (x,), verify="off", only=["fold_factor"])
    assert words(made.report) == [word]
    assert error(made.module()(x), exact) <= BUDGET * error(model(x), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_cast_to_float16_needs_is_kept(dtype: torch.dtype) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.rms_norm((x * 1e-3).half(), (6,)).sin()

    x = torch.full((2, 6), 1e6, dtype=dtype)
    made = normfuse.rewrite(Net().eval(), (x,), verify="off")
    assert words(made.report) == ["narrow_values"]
    assert made.module()(x).isfinite().all()


@pytest.mark.parametrize(("by", "word"), [(3.0, "took"), (-3.0, "trains")])
def test_gradients(by: float, word: str) -> None:
    model = Scaled(by, nn.LayerNorm(6, eps=0.1)).double()
    x = normal(4, 6).requires_grad_()
    fast = compiled(model, **{"normfuse.policy": "convert"})
    wanted = torch.autograd.grad(model(x).sin().sum(), [x, *model.parameters()])
    found = torch.autograd.grad(fast(x).sin().sum(), [x, *fast.parameters()])
    assert words(normfuse.last_report()) == [word]
    assert distance(list(found), list(wanted)) <= EXACT


def test_a_factor_that_trains_keeps_its_gradient() -> None:
    model, x = Scaled(nn.Parameter(entry(3.0)), rms()).double(), normal(4, 6)
    fast = compiled(model)
    wanted = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
    found = torch.autograd.grad(fast(x).sin().sum(), list(fast.parameters()))
    assert words(normfuse.last_report()) == ["trains"]
    assert distance(list(found), list(wanted)) <= EXACT


def test_gradients_end_where_they_ended() -> None:
    class Net(Scaled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                h = x * self.by
            return self.norm(h)

    model, x = Net(3.0, rms()).double(), normal(4, 6).requires_grad_()
    compiled(model)(x).sum()
    assert words(normfuse.last_report()) == ["grad_mode"]


def test_weights_that_write_a_term_train_as_they_are() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.lin = rms(), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x * 2.2 + self.lin(x))

    model, x = Net().double(), normal(4, 6)
    fast = compiled(model)
    wanted = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
    found = torch.autograd.grad(fast(x).sin().sum(), list(fast.parameters()))
    assert words(normfuse.last_report()) == ["trains"]
    assert distance(list(found), list(wanted)) <= EXACT


class Two(nn.Module):
    """Two norms of one product, and one of another; each behind a number as well."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(rms() for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = x * 2.0
        return self.norms[0](h) / 3.0, self.norms[1](h), self.norms[2](x * 0.5)


def test_a_norm_that_verification_gives_up_keeps_its_factors() -> None:
    """The norm beside it needs the product, then; the third one goes on."""
    from normfuse.passes import scaled_norms

    def wrong(norm, factor, spec, operands, placement, original=scaled_norms._with_eps):
        spec, operands = original(norm, factor, spec, operands, placement)
        return (replace(spec, eps=1.0) if spec.has_scale and is_first(norm) else spec), operands

    def is_first(norm: torch.fx.Node) -> bool:
        return norm is next(n for n in norm.graph.nodes if n.op == "call_module")

    model, x = Two().double().eval(), normal(4, 6)
    with patch.object(scaled_norms, "_with_eps", wrong):
        made = normfuse.rewrite(copy.deepcopy(model), (x,), verify="sites")
    assert [site.refusals["fold_factor"].code for site in made.report.sites[:2]] == [
        "over_budget",
        "raw_reader",
    ]
    assert words(made.report)[2:] == TOOK
    assert apart(model, made.module(), (x,)) <= EXACT


def test_who_waits_when_the_rule_is_off() -> None:
    made = normfuse.rewrite(Two().double().eval(), (normal(4, 6),), verify="off", skip=["fold_factor"])
    assert words(made.report) == ["not_asked", "", ""]


def test_a_zero_vector_has_the_gradient_that_it_had() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.normalize(x * 0.5, dim=-1)

    x = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    fast = compiled(Net())
    (wanted,) = torch.autograd.grad(Net()(x).sum(), x)
    (found,) = torch.autograd.grad(fast(x).sum(), x)
    assert words(normfuse.last_report()) == TOOK
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)


def test_sizes_that_are_symbols() -> None:
    class Net(Scaled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x * -2.0) + self.norm(x * x.shape[0])

    model = Net(3.0, rms()).double().eval()
    fast = torch.compile(
        copy.deepcopy(model), backend=normfuse.normfuse_backend, dynamic=True,
        options={"normfuse.inner": "eager"},
    )  # fmt: skip
    for count in (4, 7):
        assert apart(model, fast, (normal(count, 6),)) <= EXACT
    assert words(normfuse.last_report()) == [*TOOK, "computed_factor"]


def test_under_autocast() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.norm = nn.Linear(6, 64), nn.LayerNorm(64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.norm(self.lin(x) * 0.3)

    model, x = Net().eval(), torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        h = F.linear(x.bfloat16(), model.lin.weight.bfloat16(), model.lin.bias.bfloat16()).double()
        exact = F.layer_norm(h * 0.3, (64,), eps=1e-5)
        fast = compiled(model, **{"normfuse.only": ["fold_factor"]})
        assert error(fast(x), exact) <= BUDGET * error(model(x), exact)
    assert words(normfuse.last_report()) == TOOK


class Embedded(nn.Module):
    """Gemma's scaled embedding in front of a stream of LayerNorms, and of a layer with a LayerScale."""

    def __init__(self, by: float | torch.Tensor) -> None:
        super().__init__()
        self.table, self.lin = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.first, self.second, self.gamma = nn.LayerNorm(6), nn.LayerNorm(6), nn.Parameter(torch.rand(6))
        self.by = by if isinstance(by, float) else nn.Buffer(by)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.table(ids) * self.by
        h = h + self.gamma * self.lin(self.first(h))
        return self.second(h)


@pytest.mark.parametrize("by", [6**0.5, torch.tensor(6**0.5), torch.tensor([6**0.5])])
def test_a_scaled_embedding_costs_no_conversion(by: float | torch.Tensor) -> None:
    model, ids = Embedded(by).double().eval(), torch.tensor([[1, 2, 3]])
    made = normfuse.rewrite(copy.deepcopy(model), (ids,))
    assert made.report.after == {"rms_norm": 2}
    assert words(made.report) == ["raw_reader", ""]
    assert apart(model, made.module(), (ids,)) <= EXACT
