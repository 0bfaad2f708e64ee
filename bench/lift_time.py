"""How long recognition takes, by the size of the graph.

    python bench/lift_time.py --json bench/results/lift_time.json

The graphs are chains of one block: two hand-written norms, a native one, two linears, a residual
sum. One thread; the best of several rounds, because noise only adds.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from normfuse.ir.program import Input, Program, Role
from normfuse.options import Options
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.lift import lift
from normfuse.passes.work import Work

__all__ = ["chain", "seconds_to_lift"]

NORMS_PER_BLOCK = 3


def _block(x: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
    h = torch.nn.functional.linear(torch.nn.functional.gelu(h), matrix)
    centred = h - h.mean(-1, keepdim=True)
    h = centred / torch.sqrt((centred * centred).sum(-1, keepdim=True) / 8 + 1e-5) * weight + bias
    h = torch.nn.functional.linear(h, matrix)
    return x + torch.nn.functional.layer_norm(h, (8,), weight, bias)


def chain(nodes: int) -> Program:
    """A program of about so many nodes."""
    operands = (torch.randn(2, 8), torch.ones(8), torch.zeros(8), torch.eye(8))
    with torch.no_grad():
        block = make_fx(_block, pre_dispatch=True, tracing_mode="fake")(*operands).graph
    inner = [n for n in block.nodes if n.op == "call_function"]
    graph = Graph()
    inputs = [graph.node_copy(n) for n in block.nodes if n.op == "placeholder"]
    x, weights = inputs[0], inputs[1:]
    for _ in range(max(1, nodes // len(inner))):
        x = _appended(graph, block, x, weights)
    graph.output(x)
    roles = [Role.USER, *[Role.PARAMETER] * len(weights)]
    known = [Input(n, r, n.name, v) for n, r, v in zip(inputs, roles, operands, strict=True)]
    return Program(GraphModule({}, graph), known)


def _appended(graph: Graph, block: Graph, x: Node, weights: list[Node]) -> Node:
    values: dict[Node, Node] = {}
    outer = iter((x, *weights))
    for node in block.nodes:
        if node.op == "placeholder":
            values[node] = next(outer)
        elif node.op == "call_function":
            values[node] = graph.node_copy(node, values.__getitem__)
    last = block.output_node().args[0]
    assert isinstance(last, Node)
    return values[last]


def seconds_to_lift(program: Program) -> tuple[int, int, float]:
    """Nodes before, norms found, and the time of recognition alone."""
    nodes = len(program.gm.graph.nodes)
    work = Work(program, Options())
    started = time.process_time()
    canonicalize(program.gm)
    lift(work)
    return nodes, len(work.report.sites), time.process_time() - started


def main(
    sizes: Annotated[list[int] | None, typer.Option(help="nodes")] = None,
    rounds: Annotated[int, typer.Option(help="rounds for each size")] = 3,
    to: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Time recognition for graphs of growing size."""
    torch.set_num_threads(1)
    table = Table("nodes", "norms", "seconds", "ms per 1,000 nodes")
    rows = []
    for size in sizes or [1_000, 3_000, 10_000, 30_000, 100_000]:
        measured = [seconds_to_lift(chain(size)) for _ in range(rounds)]
        nodes, norms, seconds = min(measured, key=lambda m: m[2])
        rows.append({"nodes": nodes, "norms": norms, "seconds": round(seconds, 4)})
        table.add_row(f"{nodes:,}", f"{norms:,}", f"{seconds:.3f}", f"{1e6 * seconds / nodes:.1f}")
    Console().print(table)
    if to is not None:
        to.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
