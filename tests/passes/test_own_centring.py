"""Means that the model takes away itself ahead of a LayerNorm: gone where weights write none, else kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfuse
from normfuse.ir.calls import aten
from tests.passes.building import EXACT, D, Net, distance, evaluate, inputs, normal, outcome, randomised


def centred(h: Tensor, dim: Any = -1) -> Tensor:
    return h - h.mean(dim, keepdim=True)


def in_front(s: Net, x: Tensor) -> Tensor:
    return s.ln(centred(s.lin(x)))


def in_a_stream(s: Net, x: Tensor) -> Tensor:
    h = s.lin(x)
    h = h + s.lin2(s.ln(centred(h))[..., :5])
    return s.ln2(h)


def twice(s: Net, x: Tensor) -> Tensor:
    return s.ln(centred(centred(s.lin(x))))


def for_two(s: Net, x: Tensor) -> Tensor:
    h = s.lin(x)
    c = h - h.mean(-1, keepdim=True)
    return s.ln(c) + s.ln2(c)


def by_one_mean_twice(s: Net, x: Tensor) -> Tensor:
    h = s.lin(x)
    mean = h.mean(-1, keepdim=True)
    return s.ln(h - mean) + s.ln2(h - mean)


def moved(s: Net, x: Tensor) -> Tensor:
    h = s.lin(x).transpose(-1, -2)
    return s.ln(centred(h, -2).transpose(-1, -2))


def of_tokens(s: Net, x: Tensor) -> Tensor:
    return s.ln(centred(s.lin(x), 1))


def scaled(s: Net, x: Tensor) -> Tensor:
    return s.ln(centred(s.lin(x) * x.sum(-1, keepdim=True)))


def nonlinear(s: Net, x: Tensor) -> Tensor:
    return s.ln(centred(s.lin(x).relu()))


def returned(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    c = centred(s.lin(x))
    return s.ln(c), c


def mean_read(s: Net, x: Tensor) -> Tensor:
    h = s.lin(x)
    mean = h.mean(-1, keepdim=True)
    return s.ln(h - mean) + mean


def value_read(s: Net, x: Tensor) -> Tensor:
    h = s.lin(x)
    return s.ln(centred(h)) + h.sin()


def mean_of_another(s: Net, x: Tensor) -> Tensor:
    return s.ln(s.lin(x) - s.lin2(x).mean(-1, keepdim=True))


def half_of_it(s: Net, x: Tensor) -> Tensor:
    h = s.lin(x)
    return s.ln(torch.sub(h, h.mean(-1, keepdim=True), alpha=0.5))


def turned(s: Net, x: Tensor) -> Tensor:
    h = s.lin(x)
    return s.ln(h.mean(-1, keepdim=True) - h)


def over_two_axes(s: Net, x: Tensor) -> Tensor:
    return s.ln(centred(s.lin(x), (-1, -2)))


def repeated(s: Net, x: Tensor) -> Tensor:
    h = s.lin(x[:1])
    return s.ln(h - h.mean(-1, keepdim=True).expand(6, -1, -1))


def without_an_axis(s: Net, x: Tensor) -> Tensor:
    """The mean of the fourth row is taken from the fourth channel, and so on: sizes alone fit."""
    h = s.lin(x[0])
    return s.ln(h - h.mean(-1))


def of_a_part(s: Net, x: Tensor) -> Tensor:
    return s.ln(centred(s.lin(x)[:, ::2]))


def of_the_largest(s: Net, x: Tensor) -> Tensor:
    h = s.lin(x)
    return s.ln(h - h.amax(-1, keepdim=True))


def written_behind(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    h = s.lin(x)
    y = s.ln(centred(h))
    h.view(-1).add_(1)
    return y, h


CASES: dict[Callable[..., Any], tuple[int, set[str]]] = {
    in_front: (1, set()), in_a_stream: (2, set()), twice: (1, set()), for_two: (2, set()),
    by_one_mean_twice: (2, set()), moved: (1, set()), of_tokens: (1, set()), scaled: (1, set()),
    nonlinear: (0, {"nonlinear_writer"}), returned: (0, {"stream_is_output"}),
    mean_read: (0, {"raw_reader"}), value_read: (0, {"raw_reader"}),
    mean_of_another: (0, {"constant_added"}), half_of_it: (0, {"constant_added"}),
    turned: (0, {"constant_added"}), over_two_axes: (0, {"constant_added"}),
    of_a_part: (0, {"constant_added"}), of_the_largest: (0, {"constant_added"}),
    repeated: (0, {"constant_added"}), without_an_axis: (0, {"raw_reader"}),
    written_behind: (0, {"mutated"}),
}  # fmt: skip


@pytest.mark.parametrize("run", CASES, ids=lambda run: run.__name__)
@pytest.mark.parametrize("target", ["rms_norm", "crms_norm"])
def test_a_mean_that_the_model_takes_away(run: Callable[..., Any], target: str) -> None:
    model = randomised(Net(run, {}))
    made = normfuse.rewrite(copy.deepcopy(model), inputs(), target=target, verify="off")
    assert distance(evaluate(made.module(), inputs()), evaluate(model, inputs())) <= EXACT
    assert outcome(made.report) == CASES[run]


@pytest.mark.parametrize("run", [in_front, twice, for_two, by_one_mean_twice, moved])
def test_nothing_is_left_of_it(run: Callable[..., Any]) -> None:
    made = normfuse.rewrite(randomised(Net(run, {})), inputs())
    targets = {node.target for node in made.program.graph.nodes}
    assert not targets & {aten.sub.Tensor, aten.mean.dim}
    assert made.report.sites[0].certificate is not None


def test_two_norms_of_what_no_weight_writes_share_one_centring_behind_the_model_s() -> None:
    """Twice is right: what is left of the mean after the first, by rounding, goes with the second."""

    def run(s: Net, x: Tensor) -> Tensor:
        c = centred(s.lin(x).relu())
        return s.ln(c) + s.ln2(c)

    model = randomised(Net(run, {}))
    made = normfuse.rewrite(copy.deepcopy(model), inputs())
    assert (made.report.after, made.report.centrings) == ({"rms_norm": 2}, 1)
    assert sum(node.target is aten.mean.dim for node in made.program.graph.nodes) == 2
    assert distance(evaluate(made.module(), inputs()), evaluate(model, inputs())) <= EXACT


def test_a_difference_in_a_wider_dtype_stays() -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        h = s.lin(x).bfloat16()
        return F.layer_norm(h - h.mean(-1, keepdim=True, dtype=torch.float32), (D,))

    model = randomised(Net(run, {}))
    made = normfuse.rewrite(copy.deepcopy(model), inputs(), verify="off")
    assert distance(evaluate(made.module(), inputs()), evaluate(model, inputs())) == 0
    assert made.report.after == {"layer_norm": 1}


def test_other_maps_do_not_pass_through_it() -> None:
    """A rotation of a value without its mean is not the rotated value without its own."""

    def run(s: Net, x: Tensor) -> Tensor:
        return F.rms_norm(centred(s.lin(x)) + s.lin2(x), (D,), s.ln.weight, 1e-5) @ s.ln2.weight.outer(
            s.ln.bias
        )

    model, turn = randomised(Net(run, {})), torch.linalg.qr(normal(D, D)).Q
    made = normfuse.rewrite(copy.deepcopy(model), inputs(), rotation=turn, verify="off")
    assert distance(evaluate(made.module(), inputs()), evaluate(model, inputs())) <= EXACT


@pytest.mark.parametrize("inside", [False, True])
def test_gradients(inside: bool) -> None:
    def run(s: Net, x: Tensor) -> Tensor:
        h = s.lin(x)
        with torch.set_grad_enabled(not inside):
            c = centred(h)
        return s.ln(c).sin() + s.lin2(x)

    model = randomised(Net(run, {})).train()
    options = {"normfuse.inner": "eager", "normfuse.policy": "convert"}
    fast = torch.compile(copy.deepcopy(model), backend=normfuse.normfuse_backend, options=options)
    (x,) = inputs()

    def gradients(net: nn.Module) -> list[Tensor]:
        held = list(net.parameters())
        found = torch.autograd.grad(net(x).cos().sum(), held, allow_unused=True, materialize_grads=True)
        return list(found)

    assert distance(gradients(fast), gradients(model)) <= 1e-11
    assert normfuse.last_report().after == ({"layer_norm": 1} if inside else {"rms_norm": 1})


@pytest.mark.rounding
def test_a_norm_takes_away_what_rounding_left_of_the_mean() -> None:
    """Why neither centring may go where values have a mean: the error would grow with it."""
    x = (normal(64, 96, mean=0.0) * 1e-2 + 1e4).float()
    c = x - x.mean(-1, keepdim=True)
    exact = F.layer_norm(x.double(), (96,), eps=1e-12)

    def error(y: Tensor) -> float:
        return float((y.double() - exact).norm() / exact.norm())

    assert error(F.rms_norm(c, (96,), eps=1e-12)) > 100 * error(F.layer_norm(c, (96,), eps=1e-12))
