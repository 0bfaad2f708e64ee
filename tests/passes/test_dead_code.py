"""What nobody reads goes; what writes stays, in the graphs inside of a graph too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.fx import Graph
from torch.utils.checkpoint import checkpoint

from normfuse.ir.calls import aten
from normfuse.ir.dead_code import drop_unused


class Counting(torch.autograd.Function):
    @staticmethod
    def forward(x, total):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.total = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        ctx.total.add_(grad.sum())
        return grad, None


class Writes(nn.Module):
    """Writes to a buffer in a graph inside of the graph: in a backward pass, or in a checkpointed region."""

    def __init__(self, where):
        super().__init__()
        self.where, self.norm, self.read = where, nn.LayerNorm(8), nn.Linear(8, 8)
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x):
        x = self.read(self.norm(x))
        if self.where == "backward":
            return Counting.apply(x, self.total)
        return checkpoint(self._region, x, use_reentrant=False)

    def _region(self, x):
        y = x.sin()
        y.mul_(2)
        return y


@pytest.mark.parametrize("where", ["backward", "checkpoint"])
def test_writes_inside_of_a_graph_stay(where):
    torch.manual_seed(0)
    model = Writes(where)
    twin = copy.deepcopy(model)
    fast = torch.compile(twin, backend="normfuse", options={"normfuse.inner": "aot_eager"})
    x = torch.randn(3, 8)
    for one in (model, fast):
        y = one(x)
        y.sum().backward()
    assert twin.total == model.total
    assert (model.total != 0) == (where == "backward")
    torch.testing.assert_close(fast(x), model(x), rtol=0, atol=16 * 8 * 2**-24)


def test_what_nobody_reads_goes_with_all_that_is_for_it_alone():
    graph = Graph()
    x = graph.placeholder("x")
    kept, unused = graph.call_function(aten.sin.default, (x,)), graph.call_function(aten.cos.default, (x,))
    graph.call_function(aten.exp.default, (unused,))
    written = graph.call_function(aten.add_.Tensor, (x, 1))
    graph.output(kept)
    drop_unused(graph)
    assert [n.name for n in graph.nodes] == [x.name, kept.name, written.name, "output"]
