"""The weights of a model that is larger than the last cache come from memory where products are measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.fx import Graph, GraphModule

from normfuse.freezing import caches, fastest, library

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="freezing needs MKL")


def test_a_tensor_keeps_its_values() -> None:
    weight = torch.randn(70, 45)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    before = weight.clone(), packed.to_dense()
    done = caches.evict(weight[3:, ::2]), caches.evict(packed), caches.evict(torch.empty(0))
    assert len(set(done)) == 1
    assert torch.equal(weight, before[0])
    assert torch.equal(packed.to_dense(), before[1])


@pytest.mark.parametrize(
    ("files", "wanted"), [(["32K", "1024K", "8M"], 2**23), (["a lot"], 2**25), ([], 2**25)]
)
def test_the_last_cache(
    files: list[str], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, size in enumerate(files):
        (tmp_path / f"index{i}").mkdir()
        (tmp_path / f"index{i}" / "size").write_text(size + "\n")
    monkeypatch.setattr(caches, "_CACHES", tmp_path)
    assert caches.last_cache.__wrapped__() == wanted


@pytest.mark.parametrize(("total", "evicted"), [(1000, set()), (1001, {"plain", "mkl", "onednn", "blocks"})])
def test_weights_beyond_the_last_cache_are_evicted(
    total: int, evicted: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[str, object] = {}
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(fastest, "last_cache", lambda: 1000)
    monkeypatch.setattr(fastest, "_measured", lambda: known)
    monkeypatch.setattr(fastest, "_remember", lambda known: None)
    monkeypatch.setattr(fastest, "evict", seen.append)
    seconds, _ = fastest.figures(1, torch.randn(48, 96), total)
    assert len({id(one) for one in seen}) == len(evicted & set(seconds))
    fastest.figures(1, torch.randn(48, 96), 1001 if total == 1000 else 1000)
    assert len(known) == 2


def test_every_constant_of_a_graph_counts_once() -> None:
    owner = torch.nn.Module()
    owner.register_buffer("first", torch.randn(10, 10))
    owner.register_buffer("second", torch.randn(7, dtype=torch.float64))
    owner.register_buffer("third", owner.first)
    graph = Graph(owner)
    for name in ("first", "second", "third", "first"):
        graph.get_attr(name)
    assert library._constant_bytes(GraphModule(owner, graph).graph) == 4 * 100 + 8 * 7
