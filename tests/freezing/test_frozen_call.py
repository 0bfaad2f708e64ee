"""A graph that holds its weights answers as the model does, whatever becomes of the weights."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import normfuse
from normfuse.backends import inner
from normfuse.folding.frozen import living_frozen
from normfuse.freezing import steadiness
from normfuse.freezing.decide import Freezing
from tests.backends.networks import example, prenorm
from tests.freezing.holding import compilations, hold

#: Of two computations in float64, each off by some hundred roundings.
BOUND = 1e-11


class Counting(nn.Module):
    """Writes to a parameter of its own at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.model = prenorm()
        self.seen = nn.Parameter(torch.zeros(8, dtype=torch.float64), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        return self.model(x) + self.seen.sum()


def frozen(model: Any, **settings: Any) -> Any:
    return torch.compile(model, backend="normfuse", options={"normfuse.freeze": "on"}, **settings)


@torch.no_grad()
def difference(fast: Any, model: nn.Module, x: torch.Tensor | None = None) -> float:
    x = example() if x is None else x
    wanted = model(x)
    return float((fast(x) - wanted).norm() / wanted.norm())


def test_a_change_costs_one_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model = prenorm()
    fast = frozen(model)
    assert difference(fast, model) < BOUND
    assert len(compilations) == 1
    with torch.no_grad():
        model.head.weight.mul_(2)
    for _ in range(3):
        assert difference(fast, model) < BOUND
    assert len(compilations) == 2
    assert normfuse.last_report(fast).frozen == 1


def test_weights_that_keep_changing_are_left_out_and_this_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold(monkeypatch, calls_per_change=1000)
    model = prenorm()
    fast = frozen(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            for _ in range(3):
                assert difference(fast, model) < BOUND
            with torch.no_grad():
                model.head.weight.mul_(1.5)
    said = [w for w in caught if "without its weights" in str(w.message)]
    assert len(said) == 1
    assert len(compilations) == 3, "frozen, frozen again, and once without the weights"
    assert normfuse.last_report(fast).frozen == 0
    assert any("more often than once in 1,000 calls" in note for note in normfuse.last_report(fast).notes)


def test_changes_far_apart_are_frozen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, calls_per_change=5)
    model = prenorm()
    fast = frozen(model)
    for _ in range(4):
        for _ in range(6):
            assert difference(fast, model) < BOUND
        with torch.no_grad():
            model.head.weight.mul_(1.5)
    assert difference(fast, model) < BOUND
    assert normfuse.last_report(fast).frozen == 1


def test_a_training_loop_that_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, calls_per_change=1000)
    model = prenorm()
    fast = torch.compile(model, backend="normfuse", options={"normfuse.freeze": "auto"})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for epoch in range(7):
            fast(example()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert difference(fast, model) < BOUND
            if epoch == 4:
                settled = len(compilations)
    assert len(compilations) == settled


def test_two_models_through_one_compiled_function(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    one, other = prenorm(1), prenorm(2)
    fast_one, fast_other = frozen(one), frozen(other)
    for _ in range(3):
        assert difference(fast_one, one) < BOUND
        assert difference(fast_other, other) < BOUND


def test_weights_made_for_each_call_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, calls_per_change=1000)
    fast, x = frozen(lambda x, weight: x @ weight), torch.randn(3, 8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for _ in range(12):
            weight = nn.Parameter(torch.randn(8, 8))
            torch.testing.assert_close(fast(x, weight), x @ weight)
    assert len(compilations) == 3, "frozen, frozen again, and once without the weights"


def test_models_that_come_and_go_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, calls_per_change=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(8):
            model = prenorm(seed)
            fast = frozen(model)
            for _ in range(3):
                assert difference(fast, model) < BOUND
            del model, fast
            gc.collect()
    assert len(compilations) == 3


def test_a_change_that_many_threads_see_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch, calls_per_change=1000)
    seen = threading.Barrier(3)
    model = prenorm()
    fast = frozen(model)
    assert difference(fast, model) < BOUND
    (state,) = [f for f in living_frozen() if f.sources[0]() is model.embed.weight]
    unsettled = type(state).is_unsettled

    def meet(self: Any) -> bool:
        seen.wait(10)
        return bool(unsettled.fget(self))  # type: ignore[attr-defined]

    with torch.no_grad():
        model.head.weight.mul_(2)
    monkeypatch.setattr(type(state), "hold_for", lambda self, inputs: False)
    monkeypatch.setattr(type(state), "is_unsettled", property(meet))
    threads = [threading.Thread(target=difference, args=(fast, model)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert steadiness._histories[state.graph].changes == 1


def test_a_copy_has_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model = prenorm()
    fast = frozen(model)
    assert difference(fast, model) < BOUND
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.head.weight.mul_(3)
    assert difference(frozen(twin), twin) < BOUND
    assert difference(fast, model) < BOUND


def test_tied_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model = prenorm()
    model.blocks[1].up.weight = model.blocks[0].up.weight
    fast = frozen(model)
    assert difference(fast, model) < BOUND
    with torch.no_grad():
        model.blocks[0].up.weight.mul_(2)
    assert difference(fast, model) < BOUND
    model.blocks[1].up.weight = nn.Parameter(model.blocks[0].up.weight.detach().clone())
    with torch.no_grad():
        model.blocks[0].up.weight.mul_(2)
    assert difference(fast, model) < BOUND


def test_sizes_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model = prenorm()
    fast = frozen(model, dynamic=True)
    for batch in (3, 5, 8):
        assert difference(fast, model, example(batch)) < BOUND
    with torch.no_grad():
        model.head.weight.mul_(2)
    for batch in (3, 5, 8):
        assert difference(fast, model, example(batch)) < BOUND
    assert len(compilations) == 2


def test_a_graph_break(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = prenorm()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.model(x)
            torch._dynamo.graph_break()
            return self.model(x + y.mean())

    model = Broken().eval()
    fast = frozen(model)
    assert difference(fast, model) < BOUND
    with torch.no_grad():
        model.model.head.weight.mul_(2)
    assert difference(fast, model) < BOUND
    assert difference(fast, model) < BOUND


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model = prenorm()
    fast = frozen(model)
    assert difference(fast, model) < BOUND
    found: list[float] = []

    def work() -> None:
        found.extend(difference(fast, model) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert max(found) < BOUND


def test_the_constants_go_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    gc.collect()
    before = len(living_frozen())
    model = prenorm()
    assert difference(frozen(model), model) < BOUND
    assert len(living_frozen()) == before + 1
    weight = weakref.ref(model.head.weight)
    del model
    gc.collect()
    assert weight() is None
    assert len(living_frozen()) == before


def test_invalidate_reaches_a_frozen_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model = prenorm(width=64)
    fast = frozen(model)
    assert difference(fast, model) < BOUND
    model.blocks[0].up.weight.data[1, 1] += 1e3  # one entry of many, which no sample need hit
    assert normfuse.invalidate(model) >= 1
    assert difference(fast, model) < BOUND


def test_a_graph_that_writes_to_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph writes to is no constant of it."""
    hold(monkeypatch)

    model = Counting().eval()
    fast, twin = frozen(model), copy.deepcopy(model)
    for _ in range(3):
        assert difference(fast, twin) < BOUND
    assert torch.equal(model.seen, twin.seen)
    assert len(compilations) == 1
    assert normfuse.last_report(fast).frozen == 1


def test_a_weight_that_the_graph_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)

    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = prenorm()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.model(x), self.model.head.weight

    model = Returning().eval()
    fast = frozen(model)
    with torch.no_grad():
        assert fast(example())[1] is model.model.head.weight


def test_under_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    model = prenorm()
    fast = frozen(model)
    with torch.inference_mode():
        wanted = model(example())
        assert float((fast(example()) - wanted).norm() / wanted.norm()) < BOUND
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert difference(fast, model) < BOUND


def test_under_autocast_where_nothing_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo's graph says no casts; it ran in float32, and answered in it."""
    hold(monkeypatch)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 7)).eval()
    fast, x = frozen(model), torch.randn(5, 12)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, wanted = fast(x), model(x)
        assert len(compilations) == 1
        assert found.dtype == wanted.dtype == torch.bfloat16
        assert torch.equal(found, wanted)
        model[0].weight.mul_(2)
        assert torch.equal(fast(x), model(x))
    with torch.no_grad():
        assert fast(x).dtype == torch.float32


def test_weights_are_constants_of_the_graph_with_the_fewest_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a prompt is read first, and then token after token, and each stores them in its own way."""
    hold(monkeypatch)
    monkeypatch.setattr(Freezing, "is_shareable", False)
    gc.collect()
    before = len(living_frozen())
    model = prenorm()
    fast = torch.compile(model, backend="normfuse", dynamic=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            for batch in (8, 1, 1, 1):
                assert difference(fast, model, example(batch)) < BOUND
                assert len(living_frozen()) <= before + 1
    (one,) = [f for f in living_frozen() if f.sources[0]() is model.embed.weight or f.rows == 6][-1:]
    assert one.rows == 6, "six tokens of one example"
    assert len([s for s in compilations if s.get("freezing")]) <= 4


def test_graphs_that_store_weights_alike_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    monkeypatch.setattr(Freezing, "is_shareable", True)
    gc.collect()
    before = len(living_frozen())
    model = prenorm()
    fast = torch.compile(model, backend="normfuse", dynamic=False)
    for batch in (8, 1, 2, 8, 1):
        assert difference(fast, model, example(batch)) < BOUND
    assert len(living_frozen()) == before + 3
    assert [settings["freezing"] for settings in compilations] == [True] * 3
    with torch.no_grad():
        model.head.weight.mul_(2)
    for batch in (8, 1, 2, 8, 1, 2):
        assert difference(fast, model, example(batch)) < BOUND
    assert len(living_frozen()) == before + 3


def test_on_holds_them_for_each_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)
    gc.collect()
    before = len(living_frozen())
    model = prenorm()
    fast = frozen(model, dynamic=False)
    for batch in (8, 1, 8, 1):
        assert difference(fast, model, example(batch)) < BOUND
    assert len(living_frozen()) == before + 2
    assert len(compilations) == 2


def test_what_was_compiled_holds_the_constants_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folded weights would be held a third time by the graph that Inductor was given."""
    hold(monkeypatch)
    given: list[nn.Module] = []
    held = inner.run_inner

    def noted(gm: Any, *rest: Any) -> Any:
        given.append(gm)
        return held(gm, *rest)

    monkeypatch.setattr(inner, "run_inner", noted)
    model = prenorm()
    assert difference(frozen(model), model) < BOUND
    buffers = [b for gm in given for b in gm.buffers()]
    assert buffers
    assert not any(b.numel() for b in buffers)


def test_compiled_code_that_fails_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some of Inductor's kernels do; what they wrote before that is put back."""
    hold(monkeypatch)
    monkeypatch.setenv("NORMFUSE_STRICT", "0")
    held = inner.run_inner

    def failing(gm: Any, inputs: Any, options: Any, settings: Any) -> Any:
        run = held(gm, inputs, options, settings)

        def fail(*given: Any) -> Any:
            run(*given)
            raise RuntimeError("unsupported datatype")

        return fail if settings.get("freezing") else run

    monkeypatch.setattr(inner, "run_inner", failing)

    model = Counting().eval()
    fast, twin = torch.compile(model, backend="normfuse"), copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"fails \(RuntimeError: unsupported datatype\)"):
        assert difference(fast, twin) < BOUND
    for _ in range(3):
        assert difference(fast, twin) < BOUND
    assert torch.equal(model.seen, twin.seen)
    assert normfuse.last_report(fast).frozen == 0
    assert any("unsupported datatype" in note for note in normfuse.last_report(fast).notes)


def test_inputs_that_are_wrong_are_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    hold(monkeypatch)

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.model = nn.Embedding(5, 8, dtype=torch.float64), prenorm()

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            return self.model(self.table(index))

    model = Looking().eval()
    fast = frozen(model)
    with torch.no_grad(), pytest.raises(IndexError):
        fast(torch.tensor([[7, 1]]))
    assert difference(fast, model, torch.tensor([[4, 1]])) < BOUND
    assert len(compilations) == 1
