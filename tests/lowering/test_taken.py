"""What the report says of a norm that nothing rewrites is in the graph that is compiled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

import normfuse
from normfuse.backends import inner
from normfuse.kernels import device
from normfuse.lowering import choose
from normfuse.lowering.product import ADD_PRODUCT, PRODUCT

EPS = 1e-5


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GraphModule]]:
    """Every graph that reaches what compiles it; nothing is compiled."""
    found: list[GraphModule] = []

    def keep(gm: GraphModule, *_: object) -> object:
        found.append(gm)
        return gm.forward

    monkeypatch.setattr(inner, "run_inner", keep)
    return found


def targets(gm: GraphModule) -> list[str]:
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("verified", ["off", "output", "sites"])
def test_a_norm_that_is_kept_is_run_as_it_says(
    verified: str, trains: bool, graphs: list[GraphModule]
) -> None:
    model = nn.Sequential(nn.RMSNorm(16, eps=EPS, elementwise_affine=False), nn.Linear(16, 4))
    options = {"normfuse.lower": "deferred", "normfuse.freeze": "off", "normfuse.verify": verified}
    fast, x = torch.compile(model.train(trains), backend="normfuse", options=options), torch.randn(3, 16)
    with torch.set_grad_enabled(trains):
        found, wanted = fast(x), model(x)
    # Sixteen products and a factor in float32.
    assert float((found - wanted).detach().abs().max()) < 64 * 2**-24 * float(wanted.detach().abs().max())
    (site,) = normfuse.last_report(fast).sites
    assert (site.action, site.lowering) == ("kept", "deferred")
    assert "aten.rsqrt.default" in targets(graphs[-1])


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_kernels_run_norms_that_are_kept(
    norm: type[nn.Module], graphs: list[GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strict mode compares what is recorded of every node with what the operators say."""
    pytest.importorskip("triton", reason="the kernels are written in Triton")
    monkeypatch.setenv("NORMFUSE_STRICT", "1")
    monkeypatch.setattr(device, "_INTERPRETED", True)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), norm(16, eps=EPS), nn.GELU())
    options = {"normfuse.lower": "triton", "normfuse.freeze": "off"}
    fast = torch.compile(model.eval(), backend="normfuse", options=options)
    with torch.no_grad(), pytest.raises(Exception, match=r"triton|CUDA|driver"):
        fast(torch.randn(3, 8))  # there is no device that could run it
    assert "normfuse.norm.default" in targets(graphs[-1])


@pytest.mark.parametrize("way", ["triton", "deferred"])
def test_a_sum_without_gradients_is_not_added_where_they_are_recorded(
    way: str, graphs: list[GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kernel for both would record them for all of its results or for none."""
    pytest.importorskip("triton", reason="the kernels are written in Triton")
    monkeypatch.setattr(device, "_INTERPRETED", True)
    monkeypatch.setitem(choose._WAYS, "deferred", (ADD_PRODUCT, PRODUCT))
    linear = nn.Linear(16, 4)

    def switched(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            h = x + r
        return linear(F.rms_norm(h, (16,), eps=EPS))

    fast = torch.compile(switched, backend="normfuse", options={"normfuse.lower": way})
    wanted = switched(torch.ones(3, 16), torch.ones(3, 16))
    found = fast(torch.ones(3, 16), torch.ones(3, 16))
    assert found.requires_grad
    # Sixteen products and a norm in float32.
    assert float((found - wanted).detach().abs().max()) < 64 * 2**-24 * float(wanted.detach().abs().max())
    (site,) = normfuse.last_report(fast).sites
    assert site.lowering.startswith("inductor: gradients are switched on or off beside")
    assert not [name for name in targets(graphs[-1]) if "normfuse" in name]
