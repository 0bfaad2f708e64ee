"""Norms that norms read: which are left out where that is allowed, how results move, and what stays."""

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
from normfuse.verify import approximation
from tests.passes.building import distance, evaluate, normal

D, E = 6, 3
X = normal(2, 5, D)
EPS = 1e-3


class Net(nn.Module):
    def __init__(self, run: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.run = run
        self.lin, self.other = nn.Linear(D, D, bias=False), nn.Linear(D, D)
        self.weight = nn.Parameter(torch.linspace(0.5, 2, D))
        self.shift = nn.Parameter(torch.linspace(-1, 1, D))
        generator = torch.Generator().manual_seed(1)
        nn.init.normal_(self.lin.weight, generator=generator)
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def rms(x: Tensor, weight: Tensor | None = None, eps: float = EPS) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def ln(x: Tensor, weight: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, (D,), weight, shift, EPS)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, E)).transpose(1, 2)


LEFT_OUT: dict[str, Callable[[Net, Tensor], Any]] = {
    "through a weight": lambda s, x: rms(s.lin(rms(x))),
    "with weights": lambda s, x: rms(s.lin(rms(x, s.weight)), s.weight),
    "directly": lambda s, x: ln(rms(x, s.weight), s.weight, s.shift),
    "by heads": lambda s, x: rms(heads(s.lin(rms(x))).contiguous()),
    "two that read": lambda s, x: (lambda y: rms(s.lin(y)) + ln(y * s.weight))(rms(x)),
    "a chain": lambda s, x: rms(s.lin(rms(s.lin(rms(x))))),
    "a chain without weights": lambda s, x: ln(rms(rms(x, s.weight), s.weight)),
    "times a number": lambda s, x: rms(s.lin(rms(x) * 3.0)) * 0.5,
    "in bfloat16": lambda s, x: rms(F.linear(rms(x.bfloat16()), s.lin.weight.bfloat16())).double(),
}
KEPT: dict[str, tuple[str, Callable[[Net, Tensor], Any]]] = {
    "a bias": ("raw_reader", lambda s, x: rms(s.other(rms(x)))),
    "a sum": ("raw_reader", lambda s, x: rms(rms(x) + x)),
    "another reader": ("raw_reader", lambda s, x: (lambda y: rms(s.lin(y)) + y)(rms(x))),
    "returned": ("norm_is_output", lambda s, x: (lambda y: (y, rms(s.lin(y))))(rms(x))),
    "not linear": ("raw_reader", lambda s, x: rms(rms(x).relu())),
    "a gate": ("raw_reader", lambda s, x: rms(rms(x) * x)),
    "over rows": ("raw_reader", lambda s, x: F.rms_norm(rms(x), (5, D), None, EPS)),
    "over joined rows": ("raw_reader", lambda s, x: rms(rms(x).flatten(1))),
    "over tokens": ("raw_reader", lambda s, x: rms(rms(x).mT)),
    "a sum over rows": ("raw_reader", lambda s, x: rms(s.lin.weight[:, :5] @ rms(x))),
    "a centred one": ("", lambda s, x: rms(s.lin(ln(x)))),
    "a shift": ("unusual_form", lambda s, x: rms(s.lin(rms(x) + s.shift))),
    "no eps": ("raw_reader", lambda s, x: rms(s.lin(rms(x)), eps=0.0)),
    "a length by itself": ("raw_reader", lambda s, x: F.normalize(s.lin(rms(x)), dim=-1)),
    "a larger product": (
        "raw_reader", lambda s, x: rms((rms(x) * s.weight[:, None, None, None]).permute(1, 0, 2, 3)),
    ),
    "another product": ("raw_reader", lambda s, x: rms(s.lin(rms(x)) @ x[:, :D, :].mT @ x)),
    "its own weight": ("raw_reader", lambda s, x: rms(x[0, 0] * 1.0, rms(x[0, 0]))),
    "float16": ("overflow", lambda s, x: rms(F.linear(rms(x.half()), s.lin.weight.half())).double()),
}  # fmt: skip


def rewritten(run: Callable[[Net, Tensor], Any], **options: Any) -> tuple[normfuse.Rewritten, Net]:
    model = Net(run)
    return normfuse.rewrite(copy.deepcopy(model), (X,), **{"allow": "approximate", **options}), model


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_norm_is_left_out_and_results_move_by_its_bound(name: str) -> None:
    made, model = rewritten(LEFT_OUT[name])
    first = made.report.sites[0]
    assert first.rules == ["drop_inner"]
    assert first.becomes == ""
    assert first.certificate is not None
    assert first.certificate["numerics"] == "approximate"
    assert first.certificate["bound"]["found at most"] > 0
    assert sum(made.report.after.values()) == 1 + name.startswith("two")
    assert any(note.startswith("approximate: ") for note in made.report.notes)
    off = distance(evaluate(made.module(), (X,)), evaluate(model, (X,)))
    assert off <= (2.0**-6 if "bfloat16" in name else 100 * EPS)


def test_streams_name_norms_by_their_places_in_the_report() -> None:
    report = rewritten(LEFT_OUT["through a weight"])[0].report
    drawn = [part.site for parts in report.streams for part in parts if part.role == "norm"]
    assert drawn == [index for index, site in enumerate(report.sites) if site.becomes]
    assert drawn == [1]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_nothing_is_left_out_unless_that_is_allowed(name: str) -> None:
    made, _ = rewritten(LEFT_OUT[name], allow="exact", verify="off")
    assert not any("drop_inner" in site.rules for site in made.report.sites)
    assert not any("approximate" in note for note in made.report.notes)


@pytest.mark.parametrize("name", KEPT)
def test_a_norm_stays_whose_rows_are_read(name: str) -> None:
    code, run = KEPT[name]
    made, model = rewritten(run, only=["drop_inner"], verify="off")
    assert distance(evaluate(made.module(), (X,)), evaluate(model, (X,))) <= 1e-14
    refusals = made.report.sites[0].refusals
    assert (refusals["drop_inner"].code if "drop_inner" in refusals else "") == code


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e3])
def test_the_bound_holds_for_rows_of_every_size(size: float) -> None:
    """|N_b(W RMS_a(x)) - N_b(W x)| <= b / (2 min(P, M)) |N_b(W RMS_a(x))|, in float64."""
    model, x = Net(LEFT_OUT["through a weight"]), X * size
    before, after = model(x), rms(model.lin(x))
    least = torch.minimum(model.lin(rms(x)).square().mean(-1), model.lin(x).square().mean(-1))[..., None]
    assert ((after - before).abs() <= EPS / (2 * least) * before.abs() + 1e-15).all()
    assert (after - before).abs().max() > 1e-6


def test_a_norm_that_moved_further_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        approximation.Approximated, "_mean_square", lambda self, index, value: value.abs().max() * 1e9
    )
    made, model = rewritten(LEFT_OUT["through a weight"])
    assert distance(evaluate(made.module(), (X,)), evaluate(model, (X,))) <= 1e-12
    assert made.report.after == {"rms_norm": 2}
    assert "moved by more than the bound" in made.report.notes[-1]


def test_under_compile() -> None:
    model = Net(LEFT_OUT["with weights"])
    options = {"normfuse.inner": "eager", "normfuse.allow": "approximate", "normfuse.verify": "sites"}
    fast = torch.compile(copy.deepcopy(model), backend=normfuse.normfuse_backend, options=options)
    with torch.no_grad():
        assert distance([fast(X)], [model(X)]) <= 100 * EPS
    assert normfuse.last_report().after == {"rms_norm": 1}


def test_what_is_written_to_is_not_read_later() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        y = rms(x)
        x.add_(1.0)
        return rms(s.lin(y))

    options = {"normfuse.inner": "eager", "normfuse.allow": "approximate"}
    fast = torch.compile(Net(run), backend=normfuse.normfuse_backend, options=options)
    with torch.no_grad():
        assert distance([fast(X.clone())], [Net(run)(X.clone())]) <= 1e-12
    assert [site.refusal.code for site in normfuse.last_report().sites] == ["mutated", "norm_is_output"]


class Forbidding:
    """An observer that keeps the rule from every site."""

    def stage(self, name: str, work: Work) -> None:
        if name == "lift":
            for site in work.sites.values():
                work.forbid(site, "drop_inner")


def test_a_norm_that_must_stay_does() -> None:
    program = program_of(torch.export.export(Net(LEFT_OUT["directly"]), (X,)))
    report, _ = run_pipeline(program, Options(allow="approximate"), Forbidding())
    assert not any("drop_inner" in site.rules for site in report.sites)


def test_gradients_keep_it() -> None:
    options = {"normfuse.inner": "eager", "normfuse.allow": "approximate"}
    fast = torch.compile(Net(LEFT_OUT["directly"]), backend=normfuse.normfuse_backend, options=options)
    fast(X.clone().requires_grad_()).sum().backward()
    assert sum(normfuse.last_report().after.values()) == 2


def test_the_rule_is_not_asked_for_without_the_option() -> None:
    with pytest.raises(normfuse.OptionError, match="drop_inner, which needs allow='approximate'"):
        rewritten(LEFT_OUT["directly"], allow="exact", only=["drop_inner"])
