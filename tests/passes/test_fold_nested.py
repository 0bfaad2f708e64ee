"""Norms that norms read: one norm, or the reason why not, against the original in float64 and in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfuse
from normfuse.capture.exported import program_of
from normfuse.options import Options
from normfuse.passes.pipeline import run_pipeline
from normfuse.passes.work import Work
from normfuse.rule_names import RULE_NAMES
from tests.passes.building import distance, evaluate, normal

pytestmark = pytest.mark.rounding
D = 6
X = normal(2, 5, D)

#: Two roots of sums over six channels against one: some units of 1.1e-16.
EXACT = 1e-14


def rms(x: Tensor, weight: Tensor | None = None, eps: float = 0.1) -> Tensor:
    return F.rms_norm(x, (D,), weight, eps)


def ln(x: Tensor, weight: Tensor | None = None, eps: float = 0.1) -> Tensor:
    return F.layer_norm(x, (D,), weight, None, eps)


def by_hand(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1)


W = torch.linspace(-1, 2, D, dtype=torch.float64)

TOOK: dict[str, Callable[[Tensor], Any]] = {
    "rms of rms": lambda x: rms(rms(x)),
    "with a weight": lambda x: rms(rms(x, eps=0.3), W),
    "rms of layer norm": lambda x: rms(ln(x), W),
    "in float32": lambda x: by_hand(by_hand(x.float())),
    "behind a factor": lambda x: rms(rms(x) * 3.0, W),
    "behind a negative factor": lambda x: rms(rms(x) * -0.3).sin(),
    "ahead of a factor": lambda x: rms(rms(x)) * 2.0,
    "two that read one": lambda x: (lambda y: rms(y, W) + rms(y, eps=0.7))(rms(x)),
    "three": lambda x: rms(rms(rms(x), eps=0.2), eps=0.3),
    "of two axes": lambda x: F.rms_norm(F.rms_norm(x, (5, D), None, 0.1), (5, D), None, 0.2),
}
KEPT: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "a weight inside": ("channel_gate", lambda x: rms(rms(x, W))),
    "a bias inside": ("channel_gate", lambda x: rms(F.layer_norm(x, (D,), None, W, 0.1))),
    "a bias outside": ("unusual_form", lambda x: by_hand(by_hand(x)) + W),
    "centred twice": ("centred_twice", lambda x: ln(ln(x))),
    "centred outside": ("centred_twice", lambda x: ln(rms(x))),
    "read elsewhere": ("raw_reader", lambda x: (lambda y: rms(y) + y.sin())(rms(x))),
    "returned": ("raw_reader", lambda x: (lambda y: (rms(y), y))(rms(x))),
    "a view returned": ("raw_reader", lambda x: (lambda y: (rms(y), y[0]))(rms(x))),
    "other axes": ("unusual_form", lambda x: rms(F.rms_norm(x, (5, D), None, 0.1))),
    "another precision": ("unusual_form", lambda x: rms(by_hand(x.bfloat16()))),
    "its own weight": ("raw_reader", lambda x: (lambda y: rms(y) * y)(rms(x[0, 0]))),
    "eps outside": ("unusual_form", lambda x: (lambda y: rms(y / (y.norm(dim=-1, keepdim=True) + 0.1)))(x)),
    "no eps": ("factor_range", lambda x: rms(rms(x, eps=0.0))),
    "eps too small": ("factor_range", lambda x: rms(rms(x, eps=1e-200), eps=1e-100)),
    "by an l2 norm": ("unusual_form", lambda x: F.normalize(rms(x), dim=-1)),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.run = run
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.run(x)


@pytest.mark.parametrize("name", TOOK)
def test_one_norm_is_left(name: str) -> None:
    model = Net(TOOK[name])
    made = normfuse.rewrite(copy.deepcopy(model), (X,))
    assert distance(evaluate(made.module(), (X,)), evaluate(model, (X,))) <= (1e-6 if "32" in name else EXACT)
    left = 2 if name.startswith("two") else 1
    assert sum(made.report.after.values()) == left
    assert [site.becomes for site in made.report.sites[-left:]] == [*made.report.after] * left
    assert all("fold_nested" in site.rules for site in made.report.sites)


@pytest.mark.parametrize("name", KEPT)
def test_two_norms_are_left(name: str) -> None:
    code, run = KEPT[name]
    made = normfuse.rewrite(Net(run), (X,), verify="off")
    assert distance(evaluate(made.module(), (X,)), evaluate(Net(run), (X,))) <= EXACT
    assert sum(made.report.after.values()) == 2
    assert made.report.sites[-1].refusals["fold_nested"].code == code


#: Rows whose mean square is far above both eps, about each of them, about their product, and below that.
SIZES = [1e18, 1e5, 1.0, 3e-3, 1e-5, 1e-8, 1e-15, 1e-21, 1e-30, 1e-38, 0.0]
BUDGET = 1.5


@pytest.mark.parametrize("eps", [(1e-5, 1e-5), (1e-6, 1e-12), (1e-12, 1e-12), (1e-3, 1e-8)])
@pytest.mark.parametrize("norm", [rms, ln])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_every_size(
    norm: Callable[..., Tensor], eps: tuple[float, float], dtype: torch.dtype
) -> None:
    """Row by row, since one large row would hide the others."""

    def run(x: Tensor) -> Tensor:
        return F.rms_norm(norm(x, eps=eps[0]), (D,), None, eps[1])

    rows = normal(256, D, mean=0.0, seed=3)
    x = torch.cat([rows * size for size in SIZES]).to(dtype)
    made = normfuse.rewrite(Net(run), (x,), verify="off")
    assert sum(made.report.after.values()) == 1
    exact, before, after = run(x.double()), run(x).double(), made.module()(x).double()
    for part, size in zip(torch.arange(len(x)).split(256), SIZES, strict=True):
        wanted = exact[part]
        tiny = torch.finfo(dtype).eps * float(wanted.norm())
        own = max(float((before[part] - wanted).norm()), tiny)
        assert float((after[part] - wanted).norm()) <= BUDGET * own, size


@pytest.mark.parametrize("name", ["rms of rms", "with a weight", "rms of layer norm", "behind a factor"])
def test_gradients(name: str) -> None:
    model, x = Net(TOOK[name]), X.clone().requires_grad_()
    options = {"normfuse.inner": "eager", "normfuse.policy": "convert"}
    fast = torch.compile(copy.deepcopy(model), backend=normfuse.normfuse_backend, options=options)
    (wanted,) = torch.autograd.grad(model(x).sin().sum(), x)
    (found,) = torch.autograd.grad(fast(x).sin().sum(), x)
    assert distance([found], [wanted]) <= 1e-12
    assert sum(normfuse.last_report().after.values()) == 1


def test_a_norm_that_verification_gives_up_stays_and_so_does_the_one_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from normfuse.passes import fold_nested as rule

    monkeypatch.setattr(rule, "_joined", lambda spec, reads: (1.0, 0.5))
    model = Net(TOOK["rms of rms"])
    made = normfuse.rewrite(copy.deepcopy(model), (X,), verify="sites")
    assert distance(evaluate(made.module(), (X,)), evaluate(model, (X,))) <= EXACT
    assert sum(made.report.after.values()) == 2
    assert made.report.sites[1].refusals["fold_nested"].code == "over_budget"


def test_gradients_that_end_between_two_norms_end_there() -> None:
    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = rms(x)
        return rms(y) * x

    x = X.clone().requires_grad_()
    fast = torch.compile(Net(run), backend=normfuse.normfuse_backend, options={"normfuse.inner": "eager"})
    (wanted,) = torch.autograd.grad(run(x).sum(), x)
    (found,) = torch.autograd.grad(fast(x).sum(), x)
    assert distance([found], [wanted]) <= EXACT
    assert sum(normfuse.last_report().after.values()) == 2


def test_a_norm_that_another_one_multiplies_by_is_not_inside_of_it() -> None:
    model = Net(lambda x: rms(x.cos()) * rms(x[0, 0]))
    made = normfuse.rewrite(model, (X,), verify="off")
    assert distance(evaluate(made.module(), (X,)), evaluate(model, (X,))) <= EXACT
    assert made.report.after == {"rms_norm": 2}


class Forbidding:
    """An observer that keeps the rules from one site."""

    def __init__(self, place: int) -> None:
        self.place = place

    def stage(self, name: str, work: Work) -> None:
        if name == "lift":
            for rule in RULE_NAMES:
                work.forbid(list(work.sites.values())[self.place], rule)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("run", [TOOK["rms of rms"], lambda x: rms(x).sin() * rms(x).cos()])
def test_norms_that_must_stay_do(run: Callable[[Tensor], Any], place: int) -> None:
    program = program_of(torch.export.export(Net(run), (X,)))
    report, _ = run_pipeline(program, Options(), Forbidding(place))
    assert sum(n.target is torch.ops.aten.rms_norm.default for n in program.gm.graph.nodes) == 2
    assert not any(site.rewrites for site in report.sites)
