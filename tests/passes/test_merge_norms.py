"""Equal norms of one value: merged, or the reason why not, against the original in bits and in gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfuse
from normfuse.ir.calls import aten
from normfuse.passes import merge_norms as rule
from normfuse.passes.rule import Numerics
from tests.passes.building import distance, evaluate, normal, randomised

D = 6


class Net(nn.Module):
    """Two norms, two layers; ``run(net, *args)`` is the forward."""

    def __init__(
        self, run: Callable[..., Any], norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(D)
    ) -> None:
        super().__init__()
        self.one, self.two, self.up, self.down = norm(), norm(), nn.Linear(D, D), nn.Linear(D, D)
        self.run = run

    def forward(self, *args: Any) -> Any:
        return self.run(self, *args)


@dataclass(frozen=True)
class Case:
    """``merged`` norms go, and the others that could have gone stay for the reasons ``codes``."""

    run: Callable[..., Any]
    merged: int
    codes: tuple[str, ...] = ()
    norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(D)
    args: tuple[Tensor, ...] = field(default_factory=lambda: (normal(2, 5, D),))


def bare() -> nn.Module:
    return nn.LayerNorm(D, elementwise_affine=False)


def by_hand(x: Tensor, eps: float = 1e-5) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def otherwise(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)


def written_between(s: Net, x: Tensor) -> Tensor:
    first = s.up(s.one(x))
    x.add_(1.0)
    return first + s.down(s.two(x))


def written_behind(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = s.one(x), s.two(x)
    return s.up(first), s.down(second.add_(first))


def part_written_behind(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = s.one(x), s.two(x)
    second.view(-1)[::2].mul_(3.0)
    return s.up(first), s.down(second)


CASES = {
    "parallel block": Case(lambda s, x: s.up(s.one(x)) + s.down(s.two(x)).relu(), 1),
    "three": Case(lambda s, x: s.up(s.one(x)) + s.down(s.two(x)) + F.layer_norm(x, (D,)).sin(), 2),
    "no weights": Case(lambda s, x: s.one(x).sin() * s.two(x).exp(), 1, norm=bare),
    "called twice": Case(lambda s, x: s.one(x).sin() * s.one(x).exp(), 1),
    "written by hand": Case(lambda s, x: by_hand(x).sin() * by_hand(x).exp(), 1),
    "other operators": Case(lambda s, x: by_hand(x).sin() * otherwise(x).exp(), 0, ("other_spelling",)),
    "other weights": Case(lambda s, x: s.one(x).sin() * s.two(x).exp(), 0),
    "other eps": Case(lambda s, x: by_hand(x).sin() * by_hand(x, 1e-6).exp(), 0),
    "other axis": Case(
        lambda s, x: F.layer_norm(x, (D,)).sin() * F.layer_norm(x, (D, D)).exp(), 0,
        args=(normal(2, D, D),),
    ),
    "other value": Case(lambda s, x: s.one(x).sin() * s.two(x + 1).exp(), 0, norm=bare),
    "a view of the value": Case(
        lambda s, x: s.one(x).sin() * s.two(x.transpose(0, 1)).exp(), 0, norm=bare, args=(normal(4, 4, D),)
    ),
    "both returned": Case(lambda s, x: (s.one(x), s.two(x)), 0, ("norm_is_output",), norm=bare),
    "views returned": Case(
        lambda s, x: (s.one(x)[0], s.two(x).flatten()), 0, ("norm_is_output",), norm=bare
    ),
    "one returned": Case(lambda s, x: (s.one(x).sin(), s.two(x)), 1, norm=bare),
    "the first returned": Case(lambda s, x: (s.one(x), s.two(x).sin()), 1, norm=bare),
    "written between": Case(written_between, 0, norm=bare),
    "written behind": Case(written_behind, 1, norm=bare),
    "a part written behind": Case(part_written_behind, 0, norm=bare),
}  # fmt: skip


def outcome(report: normfuse.Report) -> tuple[int, tuple[str, ...]]:
    found = [site.refusals["merge_norms"].code for site in report.sites if "merge_norms" in site.refusals]
    return sum("merge_norms" in site.rules for site in report.sites), tuple(found)


def memory(values: list[Any]) -> list[tuple[int, int]]:
    tensors = [v for v in values if isinstance(v, Tensor)]
    return [
        (i, j) for i, a in enumerate(tensors) for j, b in enumerate(tensors) if torch._C._is_alias_of(a, b)
    ]


@pytest.mark.parametrize("name", CASES)
def test_equal_norms_become_one_and_no_bit_changes(name: str) -> None:
    one = CASES[name]
    model = randomised(Net(one.run, one.norm))
    made = normfuse.rewrite(copy.deepcopy(model), one.args, verify="off").module()
    plain = normfuse.rewrite(copy.deepcopy(model), one.args, verify="off", skip=["merge_norms"])
    found, wanted = evaluate(made, one.args), evaluate(plain.module(), one.args)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert memory(found) == memory(evaluate(model, one.args))
    report = normfuse.rewrite(model, one.args, verify="off").report
    assert outcome(report) == (one.merged, one.codes)
    assert sum(bool(site.merged_into) for site in report.sites) == one.merged
    assert sum(report.after.values()) == sum(report.found.values())


def test_one_operator_is_left_of_the_norms_of_a_parallel_block() -> None:
    one = CASES["parallel block"]
    made = normfuse.rewrite(randomised(Net(one.run)), one.args, only=["fold_scale", "merge_norms"])
    kinds = (aten.layer_norm.default, aten.rms_norm.default)
    assert sum(n.target in kinds for n in made.program.graph.nodes) == 1
    first, second = made.report.sites
    assert (first.action, second.action, second.becomes) == ("folded", "folded", "layer_norm")
    assert (first.merged_into, second.merged_into) == ("", "one")
    assert ", 1 merged" in str(made.report)
    assert second.rules == ["fold_scale", "merge_norms"]
    assert second.certificate is not None
    assert second.certificate["numerics"] == Numerics.ROUNDING.value
    assert set(second.errors) == set(first.errors) != set()


def test_a_merged_norm_that_verification_gives_up_stays() -> None:
    """A fault that only the second norm sees: the first of two that are not equal."""
    one = CASES["no weights"]
    keys = patch.object(rule, "norms_in", lambda gm, found=rule.norms_in: _alike(found(gm)))

    def run(s: Net, x: Tensor) -> Tensor:
        return by_hand(x).sin() * by_hand(x, 0.5).exp()

    model = randomised(Net(run))
    with keys, patch.object(rule, "are_alike", lambda *_: True):
        made = normfuse.rewrite(copy.deepcopy(model), one.args, verify="sites")
    assert made.report.sites[1].action == "reverted"
    assert made.report.sites[1].refusals["merge_norms"].code == "over_budget"
    assert distance(evaluate(made.module(), one.args), evaluate(model, one.args)) == 0


def _alike(norms: list[Any]) -> list[Any]:
    """The same norms under one description."""
    return [(node, norms[0][1]) for node, _ in norms]


#: No other rule; a mean that two norms take away would be taken away once, ahead of both.
ALONE = {"normfuse.only": ["merge_norms"]}


@pytest.mark.rounding
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "run",
    [
        lambda s, x: (s.one(x), s.two(x)),
        lambda s, x: (s.one(x), s.two(x), F.layer_norm(x, (D,)).sin()),
        lambda s, x: (F.layer_norm(x, (D,)).sin(), s.one(x)[0], s.two(x.clone())),
        lambda s, x: (s.one(x).sin(), s.two(x) * 3.0),
        lambda s, x: (F.layer_norm(x, (D,)), s.one(x)),
        lambda s, x: (s.one(x), s.two(x) * 3.0, F.layer_norm(x, (D,))),
    ],
)
def test_norms_with_weights_of_their_own_share_a_core_where_they_are_compiled(
    run: Callable[..., Any], dtype: torch.dtype
) -> None:
    model = randomised(Net(run))
    x = normal(64, 5, D)
    exact = evaluate(copy.deepcopy(model).to(dtype).double(), (x.to(dtype).double(),))
    model, x = model.to(dtype), x.to(dtype)
    wanted, found = evaluate(model, (x,)), evaluate(compiled(model, **ALONE), (x,))
    assert memory(found) == memory(wanted)
    for f, w, e in zip(found, wanted, exact, strict=True):
        own = max(float((w.double() - e).norm()), torch.finfo(dtype).eps * float(e.norm()))
        assert float((f.double() - e).norm()) <= 1.5 * own
    report = normfuse.last_report()
    first, *others = [site for site in report.sites if site.rewrites]
    assert (first.action, {site.action for site in others}) == ("folded", {"merged"})
    assert len(report.sites) - len(others) == 1 + ("clone" in run.__code__.co_names)


def test_values_behind_a_shared_core_are_verified_one_by_one() -> None:
    model, x = randomised(Net(lambda s, x: (s.one(x).sin(), s.two(x)))), normal(2, 5, D)
    evaluate(compiled(model, **ALONE, **{"normfuse.verify": "sites"}), (x,))
    first, second = normfuse.last_report().sites
    assert (first.merged_into, second.merged_into) == ("", "one")
    assert set(second.errors) == set(first.errors) != set()


@pytest.mark.parametrize(
    "run",
    [
        lambda s, x: (s.one(x).sin(), by_hand(x).cos()),
        lambda s, x: (s.one(x).sin(), F.layer_norm(x, (D,), s.two.weight, s.two.bias, 1e-3)),
    ],
    ids=["another norm", "another eps"],
)
def test_other_norms_share_nothing(run: Callable[..., Any]) -> None:
    model, x = randomised(Net(run)), normal(2, 5, D)
    found, wanted = evaluate(compiled(model, **ALONE), (x,)), evaluate(model, (x,))
    assert distance(found, wanted) <= EXACT
    assert not any(site.merged_into for site in normfuse.last_report().sites)


def test_of_norms_returned_as_they_are_one_may_be_the_core() -> None:
    """Each has memory of its own, since the caller may write to one of them."""
    model, x = (
        randomised(Net(lambda s, x: (F.layer_norm(x, (D,)), s.one(x), F.layer_norm(x, (D,))))),
        normal(2, 5, D),
    )
    found, wanted = evaluate(compiled(model, **ALONE), (x,)), evaluate(model, (x,))
    assert distance(found, wanted) <= EXACT
    assert memory(found) == memory(wanted)
    assert [site.action for site in normfuse.last_report().sites].count("merged") == 1


def test_norms_that_are_cast_and_returned_share_a_core() -> None:
    """What is cast has memory of its own, so each result may be written to."""

    def cast(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, second = (F.rms_norm(x.float(), (16,), eps=1e-5) for _ in range(2))
        return first.bfloat16(), second.half()

    x = torch.randn(3, 16).bfloat16()
    fast = torch.compile(cast, backend="normfuse", options={"normfuse.inner": "eager"})
    assert all(torch.equal(*pair) for pair in zip(fast(x), cast(x), strict=True))
    assert [site.action for site in normfuse.last_report(fast).sites] == ["folded", "merged"]


def test_kernels_of_a_gpu_do_all_of_a_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """They read a value once for statistics, weight and bias, so that a core alone would be one more pass."""
    monkeypatch.setattr("normfuse.lowering.choose._is_elsewhere", lambda *_: False)
    model, x = randomised(Net(lambda s, x: (s.one(x), s.two(x)))), normal(2, 5, D)
    evaluate(compiled(model, **ALONE, **{"normfuse.lower": "triton"}), (x,))
    assert not any(site.merged_into for site in normfuse.last_report().sites)


def compiled(model: nn.Module, **options: Any) -> Any:
    options = {"normfuse.inner": "eager", **options}
    return torch.compile(model, backend=normfuse.normfuse_backend, options=options, fullgraph=True)


#: Sums of two cotangents ahead of a derivative and behind it, over six channels: some units of 1.1e-16.
EXACT = 1e-13


@pytest.mark.parametrize(
    ("run", "norm", "found"),
    [
        (lambda s, x: s.one(x).sin() * s.one(x).cos(), nn.LayerNorm, (1, ())),
        (lambda s, x: s.one(x).sin() * s.two(x).cos(), nn.LayerNorm, (2, ())),
        (lambda s, x: (s.one(x).sin(), s.two(x)), nn.LayerNorm, (2, ())),
        (lambda s, x: (s.one(x).sin(), s.two(x)), bare, (0, ("norm_is_output",))),
        (lambda s, x: s.one(x).sin() * s.two(x).cos(), bare, (1, ())),
        (lambda s, x: (s.one(x).sin(), F.layer_norm(x, (D,))), nn.LayerNorm, (0, ())),
    ],
    ids=["one weight", "two weights", "two weights, returned", "returned", "no weights", "core returned"],
)
def test_gradients(run: Callable[..., Any], norm: Any, found: tuple[int, tuple[str, ...]]) -> None:
    model = randomised(Net(run, norm if norm is bare else lambda: nn.LayerNorm(D))).train()
    fast, x = compiled(copy.deepcopy(model)), normal(2, 5, D).requires_grad_()

    def gradients(net: Any, weights: list[Tensor]) -> list[Tensor]:
        outputs = net(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return list(torch.autograd.grad(sum(o.sin().sum() for o in outputs), [x, *weights]))

    wanted = gradients(model, [*model.one.parameters()])
    assert distance(gradients(fast, [*fast.one.parameters()]), wanted) <= EXACT
    assert outcome(normfuse.last_report()) == found


def test_a_norm_without_gradients_stays_beside_one_that_has_them() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            first = s.one(x)
        return first.sin() * s.one(x).exp()

    model, x = randomised(Net(run)).train(), normal(2, 5, D).requires_grad_()
    fast = compiled(copy.deepcopy(model))
    (wanted,) = torch.autograd.grad(model(x).sum(), x)
    (found,) = torch.autograd.grad(fast(x).sum(), x)
    assert distance([found], [wanted]) <= EXACT
    assert outcome(normfuse.last_report())[0] == 0


def test_sizes_that_are_symbols() -> None:
    one = CASES["no weights"]
    model = randomised(Net(one.run, one.norm))
    fast = torch.compile(
        copy.deepcopy(model), backend=normfuse.normfuse_backend, dynamic=True,
        options={"normfuse.inner": "eager"},
    )  # fmt: skip
    for count in (2, 3):
        x = normal(count, 5, D)
        assert distance(evaluate(fast, (x,)), evaluate(model, (x,))) <= EXACT
    assert outcome(normfuse.last_report()) == (1, ())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_in_two_dtypes_stay_two(dtype: torch.dtype) -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        return by_hand(x.float()).to(dtype).sin() * by_hand(x.float()).exp()

    x = normal(2, 5, D).to(dtype)
    made = normfuse.rewrite(Net(run).eval(), (x,), verify="off")
    assert outcome(made.report) == (0, ())
    assert torch.equal(made.module()(x), run(None, x))  # type: ignore[arg-type]


def as_it_lies(h: Tensor, weight: Tensor) -> Tensor:
    """Its result lies as ``h`` does, and that of PyTorch's own operator row after row."""
    centred = h - h.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight


def test_results_in_two_orders_share_nothing() -> None:
    def run(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        h = net.up(x).transpose(0, 1).contiguous().transpose(0, 1)
        return net.down(net.one(h)), as_it_lies(h, net.two.weight)

    model, args = randomised(Net(run)), (normal(3, 4, D),)
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    found, wanted = evaluate(fast, args), evaluate(model, args)
    assert wanted[1].stride() == found[1].stride() != torch.empty(3, 4, D).stride()
    assert distance(found, wanted) < 1e-12


def test_equal_views_are_one_value() -> None:
    """Equal once the numbers on their way are in the eps of each norm."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = net.up(x)
        one, two = (((h / k).mT * 2.0).mT for k in (3.0, 3.0))
        return net.down(net.one(one)) + net.two(two) @ net.down.weight

    bare = Net(run, lambda: nn.LayerNorm(D, elementwise_affine=False))
    model, args = randomised(bare), (normal(3, 4, D),)
    made = normfuse.rewrite(model, args, verify="off")
    assert [site.merged_into for site in made.report.sites] == ["", "one"]
    assert distance(evaluate(made.module(), args), evaluate(model, args)) < 1e-12
