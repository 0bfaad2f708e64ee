"""The hand-off to Inductor: by name, with its options, with static folded inputs, from a warm cache."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

import normfuse
from normfuse.backends import inner as inner_module
from tests.backends.networks import example, prenorm


def test_by_name() -> None:
    model = prenorm(dtype=torch.float32)
    x = example(dtype=torch.float32)
    fast = torch.compile(model, backend="normfuse", options={"epilogue_fusion": True})
    with torch.no_grad():
        assert normfuse.verify(model, fast, (x,)).ok
        model.embed.weight.mul_(torch.randn(16, 1))
        assert normfuse.verify(model, fast, (x,)).ok
    assert normfuse.last_report().after == {"rms_norm": 3}


def test_folded_weights_are_static_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor reads the mark from the placeholders; without it CUDA graphs would copy at every call."""
    from torch._functorch._aot_autograd.frontend_utils import _try_get_metadata_from_dynamo

    seen = []

    def look(gm, inputs, options, settings):
        count = len([n for n in gm.graph.nodes if n.op == "placeholder"])
        seen.append((count, _try_get_metadata_from_dynamo(gm, {}.keys(), count, [])[1]))
        return gm

    monkeypatch.setattr(inner_module, "run_inner", look)
    with torch.no_grad():
        torch.compile(prenorm(), backend="normfuse", options={"normfuse.freeze": "off"})(example())
    ((count, static),) = seen
    assert normfuse.last_report().folded == 12
    assert set(range(count - 12, count)) <= set(static)
    assert len(static) == count - 1, "all but the one input of the caller"


def test_a_second_compilation_comes_from_the_cache() -> None:
    """Folded weights are inputs, not constants: other values do not miss Inductor's caches."""
    x = example(dtype=torch.float32)
    with torch.no_grad():
        for seed in (5, 6):
            torch._dynamo.reset()
            counters.clear()
            model = prenorm(seed, torch.float32, width=24)
            fast = torch.compile(model, backend="normfuse", options={"normfuse.freeze": "off"})
            assert torch.allclose(fast(x), model(x), atol=1e-4)
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_dynamic_shapes_compile_as_often_as_without_normfuse(inner: str) -> None:
    graphs: dict[str, int] = {}
    for backend, options in ((inner, None), ("normfuse", {"normfuse.inner": inner})):
        torch._dynamo.reset()
        counters.clear()
        model = prenorm(dtype=torch.float32)
        fast = torch.compile(model, backend=backend, dynamic=True, options=options)
        with torch.no_grad():
            for batch in (4, 5, 7, 9):
                x = example(batch, torch.float32)
                assert torch.allclose(fast(x), model(x), atol=1e-4)
        graphs[backend] = counters["stats"]["unique_graphs"]
    assert graphs["normfuse"] == graphs[inner]


class Literal(torch.nn.Module):
    """A tensor made in ``forward``, as attention masks are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = prenorm(dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        return torch.where(y > 0, y, torch.tensor(-1.5)) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])


def test_tensor_literals() -> None:
    model, x = Literal().eval(), example(dtype=torch.float32)
    with torch.no_grad():
        fast = torch.compile(model, backend="normfuse")
        assert torch.allclose(fast(x), model(x), atol=1e-4)
        assert torch.allclose(fast(x), model(x), atol=1e-4)
    assert normfuse.last_report().after == {"rms_norm": 3}
