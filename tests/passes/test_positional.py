"""A program whose calls pass their operands by name is the same program."""

from __future__ import annotations

import torch
from torch import nn

import normfuse
from normfuse.ir.calls import bind, is_call


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.linear(x).reshape(-1, 6).to(torch.float64)
        return self.head(self.norm(h).contiguous())


def test_operands_by_name() -> None:
    torch.manual_seed(0)
    model, x = Block().double().eval(), torch.randn(2, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=False)
    for node in exported.graph.nodes:
        if is_call(node):
            positional = {a.name for a in node.target._schema.arguments if not a.kwarg_only}
            bound = bind(node)
            node.args, node.kwargs = (), {k: v for k, v in bound.items() if k in positional} | node.kwargs
    exported.graph_module.recompile()
    made = normfuse.rewrite(exported)
    assert made.report.after == {"rms_norm": 1}
    with torch.no_grad():
        torch.testing.assert_close(made.module()(x), model(x), rtol=1e-12, atol=1e-12)
