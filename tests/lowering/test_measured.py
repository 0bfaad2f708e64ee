"""What runs a norm is measured once for each size, and only what is fast and exact enough is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import normfuse
from normfuse.lowering import choose, measure
from normfuse.lowering.choose import lower
from normfuse.lowering.deferred import DEFERRED
from normfuse.lowering.excerpt import excerpt
from normfuse.lowering.provider import Provider
from normfuse.options import Options
from normfuse.passes.work import Work
from tests.patterns.capturing import lifted

WIDTH = 8
INPUTS = (torch.randn(3, WIDTH), torch.randn(3, WIDTH), *(torch.randn(5, WIDTH) for _ in range(3)))


def block(x: Tensor, r: Tensor, up: Tensor, gate: Tensor, last: Tensor) -> Tensor:
    """A norm of a sum, its gated products, and another norm of the same size with one product."""
    h = x + r.tanh()
    y = F.rms_norm(h, (WIDTH,), eps=1e-6)
    inner = F.silu(F.linear(y, gate)) * F.linear(y, up)
    return (F.rms_norm(h.sin(), (WIDTH,), eps=1e-6) @ last.t()) + inner.softmax(-1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The CPU as a device to measure on, and graphs that nothing compiles."""
    monkeypatch.setattr(choose, "_default", lambda *_: None)
    monkeypatch.setattr(measure, "compiled_alone", lambda gm, *_: gm.forward)
    monkeypatch.setattr(measure, "_file", lambda: tmp_path / "kept" / "lowering.json")
    measure._measured.cache_clear()
    yield monkeypatch
    measure._measured.cache_clear()


def lowered(function: Callable[..., Tensor] = block) -> Work:
    work = lifted(function, INPUTS)
    lower(work.program, work.sites, Options())
    work.program.gm.graph.lint()
    return work


def figures(**shares: float) -> tuple[dict[str, float], dict[str, float]]:
    seconds = {"inductor": 1.0, "deferred": 1.0, **shares}
    return seconds, dict.fromkeys(seconds, 1.0)


def test_a_norm_is_cut_out_with_what_is_fused_with_it() -> None:
    first, second = (excerpt(node) for node in lifted(block, INPUTS).sites)
    targets = [str(n.target) for n in first.module.graph.nodes if n.op == "call_function"]
    assert targets == [
        "aten.tanh.default", "aten.add.Tensor", "aten.linear.default", "aten.silu.default",
        "aten.linear.default", "aten.mul.Tensor",
    ]  # fmt: skip
    assert [tuple(one.shape) for one in first.inputs] == [(3, WIDTH), (3, WIDTH), (5, WIDTH), (5, WIDTH)]
    assert first.key != second.key


def test_one_of_several_results_is_where_an_excerpt_begins() -> None:
    """What made them stays outside, be it an operator like ``sort`` or the kernel of another norm."""

    def sorted_block(x: Tensor, r: Tensor, up: Tensor, *more: Tensor) -> Tensor:
        y = F.rms_norm(x + torch.sort(r, -1)[0], (WIDTH,), eps=1e-6)
        return torch.cat(F.linear(y, up).chunk(5, -1)[1:], -1)

    (norm,) = lifted(sorted_block, INPUTS).sites
    found = excerpt(norm)
    names = [str(n.target) for n in found.module.graph.nodes if n.op == "call_function"]
    assert names[:2] == ["aten.add.Tensor", "aten.linear.default"]
    assert "<built-in function getitem>" in names[2:]
    assert len(found.inputs) == 3


def test_equal_layers_have_one_key() -> None:
    def layers(x: Tensor, r: Tensor, up: Tensor, *more: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.mm(F.linear(F.rms_norm(x, (WIDTH,), eps=1e-6), up).relu().sin(), up)
        return x

    keys = [excerpt(node).key for node in lifted(layers, INPUTS).sites]
    assert keys[0] == keys[1]


def test_all_ways_are_measured_once_and_kept(here: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    plain = measure._measure

    def counted(norm, apt: Mapping[str, Provider], *more):
        calls.append(list(apt))
        return plain(norm, apt, *more)

    here.setattr(measure, "_measure", counted)
    first = [site.lowering for site in lowered().report.sites]
    measure._measured.cache_clear()
    assert [site.lowering for site in lowered().report.sites] == first
    assert calls == [["deferred"], ["deferred"]]
    for seconds, errors in measure._measured().values():
        assert all(0 < time < math.inf for time in seconds.values())
        # Eight products and a factor in float32.
        assert all(0 < error < 32 * 2**-24 for error in errors.values())


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (figures(deferred=0.5), "deferred: measured, 0.50 of Inductor's time"),
        (figures(deferred=0.99), "inductor: measured, deferred 0.99 of its time"),
        (figures(deferred=2.0), "inductor: measured, deferred 2.00 of its time"),
        (
            ({"inductor": 1.0, "deferred": 0.5}, {"inductor": 1.0, "deferred": 1.3}),
            "inductor: measured, deferred is not exact enough",
        ),
        (
            ({"inductor": 1.0, "deferred": 0.5}, {"inductor": 1.0, "deferred": math.nan}),
            "inductor: measured, deferred is not exact enough",
        ),
    ],
)
def test_the_fastest_that_is_exact_is_taken(found: object, wanted: str, here: pytest.MonkeyPatch) -> None:
    here.setattr(measure, "_measure", lambda *_: found)
    work = lowered()
    assert {site.lowering for site in work.report.sites} == {wanted}
    assert ("2 norms run as" in str(work.report)) == wanted.startswith("deferred")


def test_a_way_that_fails_or_is_wrong_is_not_taken(here: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such kernel")

    for broken, wanted in ((fails, "inf"), (lambda *_: {}, "nan")):
        measure._measured.cache_clear()
        here.setattr(
            choose, "_WAYS", {"auto": (Provider("deferred", "deferred", DEFERRED.supports, broken),)}
        )
        if wanted == "nan":
            here.setattr(measure, "_distance", lambda *_: math.nan)
        assert all("not exact enough" in site.lowering for site in lowered().report.sites)
        measure._file().unlink()


def test_where_inductor_cannot_be_measured_it_is_taken(here: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of memory\nand more")

    here.setattr(measure, "compiled_alone", fails)
    wanted = "inductor: the others could not be measured (RuntimeError: out of memory)"
    assert {site.lowering for site in lowered().report.sites} == {wanted}


def test_the_random_state_stays(here: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    wanted = torch.randn(2)
    torch.manual_seed(3)
    lowered()
    assert torch.equal(torch.randn(2), wanted)


def test_the_default_says_why() -> None:
    """A device that is not there, gradients, and open sizes are not measured; on a CPU nothing is said."""
    work = lifted(block, INPUTS)
    node, _ = next(iter(choose.norms_in(work.program.gm)))
    assert choose._default(node, torch.empty(3, WIDTH)) == ""
    assert "no device here" in str(choose._default(node, elsewhere("xpu")))


def elsewhere(device: str) -> Any:
    """What is asked of a tensor on a device that is not here."""
    return SimpleNamespace(device=torch.device(device), shape=(3, WIDTH))


def test_open_sizes_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "can_measure", lambda device: True)
    node, _ = next(iter(choose.norms_in(lifted(block, INPUTS).program.gm)))
    assert choose._default(node, elsewhere("cuda")) is None
    monkeypatch.setattr(choose, "plain_size", lambda size: "s0")
    assert "are open" in str(choose._default(node, elsewhere("cuda")))


@pytest.mark.parametrize("trains", [False, True])
def test_gradients_are_measured_where_they_are_recorded(trains: bool, here: pytest.MonkeyPatch) -> None:
    """Each of the two norms is called with its gradients, and what is wrong in these alone is not taken."""
    calls: list[bool] = []

    def compiled(gm: Any, inputs: list[Tensor], *_: object) -> Any:
        calls.extend(one.requires_grad for one in inputs)
        assert torch.is_grad_enabled() == trains
        return gm.forward

    here.setattr(measure, "compiled_alone", compiled)
    work = lifted(block, INPUTS)
    work.program.grad_enabled = trains
    lower(work.program, work.sites, Options())
    assert set(calls) == {trains}
    assert all(key.endswith(" training") == trains for key in measure._measured())
    for _, errors in measure._measured().values():
        # Eight products and a factor in float32, forth and back.
        assert all(0 < error < 64 * 2**-24 for error in errors.values())


def test_whatever_lies_around_a_norm_can_be_measured(here: pytest.MonkeyPatch) -> None:
    """Inputs that repeat values, results that are no numbers, and roots of negative random numbers."""

    def odd(x: Tensor, r: Tensor, up: Tensor, *more: Tensor) -> Tensor:
        y = F.linear(F.rms_norm(x + r[:1].expand(3, WIDTH).sqrt(), (WIDTH,), eps=1e-6), up)
        return torch.where((y > 0).any(-1, keepdim=True), y, y * 2)

    for site in lowered(odd).report.sites:
        assert "of its time" in site.lowering or "of Inductor's time" in site.lowering, site.lowering


def test_a_way_whose_gradients_are_wrong_is_not_taken(here: pytest.MonkeyPatch) -> None:
    def detached(gm: Any, node: Any, region: Any) -> Any:
        with gm.graph.inserting_before(node):
            source = node.args[0]
            half = gm.graph.call_function(torch.ops.aten.detach.default, (source,))
            half.meta["val"] = source.meta["val"]
        node.replace_input_with(source, half)
        return {}

    here.setattr(choose, "_WAYS", {"auto": (Provider("deferred", "deferred", DEFERRED.supports, detached),)})
    for trains, said in ((False, "of its time"), (True, "is not exact enough")):
        work = lifted(block, INPUTS)
        work.program.grad_enabled = trains
        here.setattr(measure, "_MARGIN", 0.0)
        lower(work.program, work.sites, Options())
        assert all(said in site.lowering for site in work.report.sites), [
            site.lowering for site in work.report.sites
        ]


def test_a_way_is_run_before_it_is_compiled(here: pytest.MonkeyPatch) -> None:
    """Its kernels choose among their plans in a call that is run; compiling one traces it."""
    order = list[str]()

    def ran() -> None:
        order.append("run")

    def write(gm: Any, node: Any, region: Any) -> Any:
        with gm.graph.inserting_before(node):
            gm.graph.call_function(ran)
        return DEFERRED.write(gm, node, region)

    def compiled(gm: Any, *_: object) -> Any:
        order.append("compiled")
        return gm.forward

    here.setattr(choose, "_WAYS", {"auto": (Provider("deferred", "deferred", DEFERRED.supports, write),)})
    here.setattr(measure, "compiled_alone", compiled)
    lowered()
    assert order[:3] == ["compiled", "run", "compiled"]  # Inductor's own, and the other way


@pytest.mark.slow
def test_gradients_are_compiled_inside_of_another_compilation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By Inductor, whose log of one compilation takes no second backward pass."""
    monkeypatch.setattr(choose, "_default", lambda *_: None)
    monkeypatch.setattr(measure, "_file", lambda: tmp_path / "lowering.json")
    measure._measured.cache_clear()
    model = torch.nn.Sequential(torch.nn.RMSNorm(16, 1e-6, elementwise_affine=False), torch.nn.Linear(16, 8))
    fast = torch.compile(model, backend="normfuse")
    fast(torch.randn(4, 16)).sum().backward()
    (site,) = normfuse.last_report(fast).sites
    assert "measured" in site.lowering
    assert "could not" not in site.lowering
    ((seconds, errors),) = measure._measured().values()
    assert set(seconds) == set(errors) == {"inductor", "deferred"}
    # Sixteen products and a factor in float32, forth and back.
    assert max(errors.values()) < 128 * 2**-24
    measure._measured.cache_clear()
