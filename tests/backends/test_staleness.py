"""Folded weights follow their sources, in place and without a recompilation."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import normfuse
from normfuse.folding import store
from normfuse.folding.recipe import Recipe
from tests.backends.networks import PreNorm, example, prenorm


@pytest.fixture(autouse=True)
def _alone() -> None:
    """Folded weights of other tests are not counted."""
    gc.collect()


class Counted:
    """A compiled model, and how many graphs were compiled for it."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        self.model, self.graphs = model, 0
        self.fast = torch.compile(model, backend=self._backend, **settings)

    def _backend(self, gm, inputs):
        self.graphs += 1
        return normfuse.normfuse_backend(gm, inputs, options={"normfuse.inner": "eager"})

    def difference(self, x: torch.Tensor) -> float:
        with torch.no_grad():
            expected = self.model(x)
            return ((self.fast(x) - expected).norm() / expected.norm()).item()


def folded_tensors() -> list[torch.Tensor]:
    return [f.tensor for f in store.living()]


def optimizer_step(model: PreNorm) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(example()).square().sum().backward()
    optimizer.step()


def fused_optimizer_step(model: PreNorm) -> None:
    """Fused kernels raise no version counter."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(example()).square().sum().backward()
    versions = [p._version for p in model.parameters()]
    optimizer.step()
    assert versions == [p._version for p in model.parameters()]


def load_state_dict(model: PreNorm) -> None:
    model.load_state_dict(prenorm(1).state_dict())


def load_by_assignment(model: PreNorm) -> None:
    model.load_state_dict(prenorm(2).state_dict(), assign=True)


def edit_in_place(model: PreNorm) -> None:
    with torch.no_grad():
        model.blocks[0].down.weight.mul_(torch.randn(16, 1, dtype=torch.float64))


def new_parameter(model: PreNorm) -> None:
    model.blocks[1].down.weight = nn.Parameter(torch.randn(16, 32, dtype=torch.float64))


def new_data(model: PreNorm) -> None:
    model.embed.weight.data = torch.randn(16, 8, dtype=torch.float64)


def another_parameter_over_the_same_memory(model: PreNorm) -> None:
    """It counts its versions from the beginning, and soon has the number that the old one had."""
    layer = model.blocks[1].down
    known = layer.weight._version
    layer.weight = nn.Parameter(layer.weight.data)
    with torch.no_grad():
        while layer.weight._version < known:
            layer.weight.add_(torch.randn(16, 32, dtype=torch.float64))
    assert layer.weight._version == known


@pytest.mark.parametrize(
    "change",
    [
        another_parameter_over_the_same_memory,
        optimizer_step,
        fused_optimizer_step,
        load_state_dict,
        load_by_assignment,
        edit_in_place,
        new_parameter,
        new_data,
    ],
)
def test_weights_change(change: Callable[[PreNorm], None]) -> None:
    model = prenorm()
    counted = Counted(model)
    assert counted.difference(example()) <= 1e-12
    addresses = {t.data_ptr() for t in folded_tensors()}
    with torch.no_grad():
        before = model(example())
    change(model)
    gc.collect()
    assert counted.difference(example()) <= 1e-12
    assert counted.graphs == 1
    assert addresses == {t.data_ptr() for t in folded_tensors()}
    with torch.no_grad():
        assert not torch.equal(before, model(example()))


def test_other_strides_are_seen_where_dynamo_skips_its_guards() -> None:
    """PyTorch 2.11 skips those of parameters by default, as long as no dictionary of a module changes."""
    unguarded = {"guard_filter_fn": lambda guards: [False] * len(guards)}
    with torch._dynamo.config.patch(use_recursive_dict_tags_for_guards=True):
        compiled = Counted(prenorm(), options=unguarded)
        weight = compiled.model.blocks[1].down.weight
        compiled.difference(example())
        for _ in range(2):
            weight.data = weight.data.reshape(32, 16).t()
            assert compiled.difference(example()) <= 1e-12
    assert compiled.graphs == 1


def test_a_few_entries_written_through_data_need_invalidate() -> None:
    model = prenorm(width=64)
    counted = Counted(model)
    counted.difference(example())
    model.blocks[0].down.weight.data[3, 5] += 1e3
    assert counted.difference(example()) > 1e-3
    assert normfuse.invalidate(model) > 0
    assert counted.difference(example()) <= 1e-12
    assert counted.graphs == 1


def test_nothing_is_folded_again_without_a_change() -> None:
    counted = Counted(prenorm())
    for _ in range(3):
        counted.difference(example())
    assert [f.refolds for f in store.living()] == [0] * len(store.living())


def test_two_models_share_code_but_not_weights() -> None:
    first, second = prenorm(0), prenorm(1)
    forward = torch.compile(
        PreNorm.forward, backend=normfuse.normfuse_backend, options={"normfuse.inner": "eager"}
    )
    with torch.no_grad():
        for _ in range(2):
            for model in (first, second):
                assert torch.allclose(forward(model, example()), model(example()), rtol=1e-12, atol=1e-12)
    assert all(f.refolds == 0 for f in store.living())


def test_shapes_share_one_copy() -> None:
    counted = Counted(prenorm())
    counted.difference(example(4))
    folded = len(folded_tensors())
    counted.difference(example(7))
    assert counted.graphs == 2
    assert len(folded_tensors()) == folded == 12


def test_folded_weights_go_with_the_model() -> None:
    model = prenorm()
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options={"normfuse.inner": "eager"})
    with torch.no_grad():
        fast(example())
    parameter = weakref.ref(model.embed.weight)
    assert folded_tensors()
    del model, fast
    gc.collect()
    assert parameter() is None
    assert folded_tensors() == []


def test_inference_mode_and_after() -> None:
    model = prenorm()
    counted = Counted(model)
    with torch.inference_mode():
        assert torch.equal(counted.fast(example()), counted.fast(example()))
    with torch.no_grad():
        model.embed.weight.mul_(torch.randn(16, 1, dtype=torch.float64))
    assert counted.difference(example()) <= 1e-12


def test_a_failing_fold_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prenorm()
    counted = Counted(model)
    counted.difference(example())
    edit_in_place(model)
    monkeypatch.setenv("NORMFUSE_STRICT", "0")
    monkeypatch.setattr(store.Recipe, "compute", lambda *_: (_ for _ in ()).throw(MemoryError("no memory")))
    with pytest.warns(UserWarning, match="could not fold a weight"):
        assert counted.difference(example()) <= 1e-12
    monkeypatch.setenv("NORMFUSE_STRICT", "1")
    with pytest.raises(MemoryError):
        counted.difference(example())


def test_a_write_while_a_weight_is_folded_is_seen(monkeypatch):
    """Another thread writes between the reading of a source and the end of its folding."""
    counted, x, writes = Counted(prenorm()), example(), []
    counted.difference(x)
    compute = Recipe.compute

    def overtaken(recipe, sources):
        made = compute(recipe, sources)
        while writes:
            writes.pop()()
        return made

    monkeypatch.setattr(Recipe, "compute", overtaken)
    weight = counted.model.embed.weight
    with torch.no_grad():
        weight.mul_(2.0)
        writes.append(lambda: weight.mul_(-3.0))
        counted.fast(x)
        assert not writes
    assert counted.difference(x) < 1e-12


def test_another_graph_in_between_has_more_of_a_weight_compared() -> None:
    """An adapter of which few entries are not zero, merged under one graph and unmerged under another."""
    model = prenorm(width=256)
    counted = Counted(model, dynamic=False)
    weight, delta = model.blocks[0].down.weight, torch.zeros(256, 512, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    chosen = torch.randint(delta.numel(), (delta.numel() // 100,), generator=generator)
    delta.view(-1)[chosen] = 10.0
    for batch in (4, 7, 4, 7):
        counted.difference(example(batch))
    assert counted.graphs == 2
    for batch in (4, 7, 4, 7):
        weight.data += delta
        assert counted.difference(example(batch)) < 1e-12
