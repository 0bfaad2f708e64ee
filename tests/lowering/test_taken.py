"""What the report says of a norm that nothing rewrites is in the graph that is compiled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import normfuse
from normfuse.backends import inner
from normfuse.kernels import device

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
