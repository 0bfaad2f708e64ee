"""One graph for layers, or models, of a class: each has its weights in code of its own."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import normfuse
from normfuse.backends import frozen_graph
from normfuse.backends import inner as backend
from normfuse.folding.frozen import living_frozen
from normfuse.folding.store import living
from normfuse.freezing import others
from tests.backends.networks import example, prenorm
from tests.freezing.holding import compilations, hold
from tests.freezing.test_frozen_call import BOUND, difference, frozen


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    if "inductor" not in request.node.name:
        hold(monkeypatch, calls_per_change=1000)
    yield
    torch._dynamo.reset()


def layers(count: int = 4) -> list[tuple[Any, nn.Module]]:
    made = [prenorm(seed) for seed in range(count)]
    return [(frozen(layer), layer) for layer in made]


def rounds(pairs: list[tuple[Any, nn.Module]], count: int = 3) -> None:
    for _ in range(count):
        for fast, layer in pairs:
            assert difference(fast, layer) < BOUND


def test_each_layer_has_its_weights_in_code_of_its_own() -> None:
    pairs = layers()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rounds(pairs)
        assert len(compilations) == 4
        rounds(pairs)
    assert len(compilations) == 4
    assert len(living_frozen()) == 4


def test_nothing_that_was_folded_is_held_beside_the_constants() -> None:
    pairs = layers()
    rounds(pairs)
    gc.collect()
    assert normfuse.last_report().folded
    assert not living()


def test_weights_of_a_single_call_are_not_compiled() -> None:
    fast, x = frozen(lambda x, weight: x @ weight), torch.randn(3, 8)
    weights = [nn.Parameter(torch.randn(8, 8)) for _ in range(20)]
    with torch.no_grad():
        for weight in weights:
            torch.testing.assert_close(fast(x, weight), x @ weight)
    assert len(compilations) == 1


@pytest.mark.parametrize("changed", [0, 2])
def test_a_change_of_one_is_seen(changed: int) -> None:
    pairs = layers()
    rounds(pairs)
    with torch.no_grad():
        pairs[changed][1].head.weight.mul_(2)
    rounds(pairs)
    assert len(living_frozen()) == 4
    assert len(compilations) == 8, "the first change costs one compilation each"


@pytest.mark.parametrize("changed", [0, 2])
def test_a_change_while_another_layer_is_called(changed: int) -> None:
    pairs = layers()
    rounds(pairs)
    kept = pairs[1]
    pairs[changed][1].head.weight.data.mul_(2)
    assert difference(*kept) < BOUND
    rounds(pairs)


@pytest.mark.filterwarnings("ignore:normfuse compiles a graph without")
def test_layers_that_are_trained_settle_down() -> None:
    pairs = layers()
    for step in range(6):
        rounds(pairs, 2)
        with torch.no_grad():
            for _, layer in pairs:
                layer.head.weight.mul_(1.1)
        if step == 3:
            settled = len(compilations)
    assert len(compilations) == settled
    assert not living_frozen()


@pytest.mark.filterwarnings("ignore:normfuse compiles a graph without")
def test_too_many_are_compiled_without_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "_MOST", 3)
    pairs = layers(6)
    rounds(pairs, 6)
    settled = len(compilations)
    rounds(pairs)
    assert len(compilations) == settled
    assert not living_frozen()


def test_what_is_made_for_a_layer_goes_with_it() -> None:
    pairs = layers()
    rounds(pairs)
    for left in (3, 2):
        del pairs[-1]
        gc.collect()
        assert len(living_frozen()) == left
        rounds(pairs)
    assert len(compilations) == 4


def test_the_first_layer_may_go() -> None:
    pairs = layers()
    rounds(pairs)
    del pairs[0]
    gc.collect()
    rounds(pairs)
    assert len(living_frozen()) == 3


def test_weights_that_come_back() -> None:
    """As where averaged weights are put in the place of the trained ones, and taken out again."""
    model = prenorm()
    fast = frozen(model)
    trained = dict(model.named_parameters())
    averaged = {name: nn.Parameter(value.detach() * 0.9) for name, value in trained.items()}
    for _ in range(4):
        for weights in (trained, averaged):
            for name, value in weights.items():
                module, _, last = name.rpartition(".")
                setattr(model.get_submodule(module), last, value)
            for _ in range(3):
                assert difference(fast, model) < BOUND
    assert len(compilations) == 2


def test_layers_that_share_their_first_weights() -> None:
    pairs = layers()
    first = next(iter(pairs[0][1].parameters()))
    name = next(name for name, _ in pairs[0][1].named_parameters())
    module, _, last = name.rpartition(".")
    for _, layer in pairs[1:]:
        setattr(layer.get_submodule(module), last, first)
    rounds(pairs)
    assert len(living_frozen()) == 4
    with torch.no_grad():
        first.mul_(2)
    rounds(pairs)


def test_threads() -> None:
    pairs = layers()
    rounds(pairs[:1], 1)
    wrong = list[float]()

    def call(fast: Any, layer: nn.Module) -> None:
        wrong.extend(found for _ in range(20) if not (found := difference(fast, layer)) < BOUND)

    threads = [threading.Thread(target=call, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(compilations) <= 4


@pytest.mark.parametrize("fails", ["room", "compiler"])
def test_where_one_cannot_be_compiled_the_report_says_why(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [prenorm(seed) for seed in range(3)]
    pairs = [(torch.compile(layer, backend="normfuse"), layer) for layer in layers]
    rounds(pairs[:1])
    monkeypatch.delenv("NORMFUSE_STRICT", raising=False)
    if fails == "room":
        monkeypatch.setattr(frozen_graph, "make_room", lambda state: "no room")
    else:
        monkeypatch.setattr(frozen_graph, "traced_with", broken)
    rounds(pairs, 3)
    assert any("no room" in note for note in normfuse.last_report().notes)
    settled = len(compilations)
    rounds(pairs)
    assert len(compilations) == settled
    assert not living_frozen()


def broken(_: object) -> Any:
    raise RuntimeError("no room")


def test_weights_of_another_kind_are_left_to_dynamo() -> None:
    """A dtype that the graph was not traced with, weights on no device, and fake tensors."""
    first, second = prenorm(1), prenorm(2).float()
    rounds([(frozen(first), first)])
    fast = frozen(second)
    with torch.no_grad():
        x = example().float()
        # Some hundred roundings in float32.
        assert float((fast(x) - second(x)).norm() / second(x).norm()) < 1e-4


def test_open_sizes() -> None:
    pairs = [(frozen(layer, dynamic=True), layer) for layer in (prenorm(1), prenorm(2))]
    for rows in (3, 5, 7, 3):
        x = torch.cat([example()] * rows)
        for fast, layer in pairs:
            assert difference(fast, layer, x) < BOUND
    assert len(living_frozen()) == len(compilations) == 2


def test_code_for_some_sizes_only_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(frozen(layer, dynamic=True), layer) for layer in (prenorm(1), prenorm(2))]
    rounds(pairs[:1])
    inner, guarded = backend.run_inner, list[object]()

    def guards(gm: Any, inputs: Any, *rest: Any) -> Any:
        sizes = [value for value in inputs if isinstance(value, torch.SymInt)]
        guarded.extend(size for size in sizes if size % 2 == example().shape[0] % 2)
        return inner(gm, inputs, *rest)

    monkeypatch.setattr(backend, "run_inner", guards)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows in (2, 3, 2, 3, 2, 3):
            for fast, layer in pairs:
                assert difference(fast, layer, torch.cat([example()] * rows)) < BOUND
    assert guarded


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(48), nn.Linear(48, 96), nn.Linear(96, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="freezing needs MKL")
@pytest.mark.parametrize("dynamic", [False, True])
def test_blocks_that_inductor_compiles_one_by_one(dynamic: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), Block()).eval()
    exact = copy.deepcopy(model).double()
    for block in model:
        block.compile(backend="normfuse", dynamic=dynamic)
    with torch.no_grad():
        for rows in (5, 7, 9, 5) if dynamic else (5, 5, 5, 5):
            x = torch.randn(rows, 48)
            result, wanted = model(x), exact(x.double())
            # Three times two sums of at most 96 products in float32 behind a norm, in any order.
            assert float((result - wanted).norm() / wanted.norm()) < 6 * 97 * 2**-24
    assert len(living_frozen()) == 3
    assert normfuse.last_report().frozen_bytes == 3 * 4 * 2 * 48 * 96
