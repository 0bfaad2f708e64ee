"""Capture of a function of tensors as a program, without Dynamo."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from normfuse.ir import Input, Program, Role
from normfuse.options import Options
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.lift import lift
from normfuse.passes.work import Work


def program_of(
    function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], weights: int
) -> Program:
    """The graph of ``function``; its last ``weights`` arguments are parameters."""
    with torch.no_grad():
        gm = make_fx(function, pre_dispatch=True, tracing_mode="fake")(*inputs)
    nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
    first = len(nodes) - weights
    roles = [Role.USER if i < first else Role.PARAMETER for i in range(len(nodes))]
    return Program(
        gm, [Input(n, r, n.name, v) for n, r, v in zip(nodes, roles, inputs, strict=True)], copies_tables=True
    )


def lifted(function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> Work:
    """The program after canonicalize and lift."""
    work = Work(program_of(function, inputs, len(inputs) - 1), Options())
    work.program.gm.graph.eliminate_dead_code()
    canonicalize(work.program.gm)
    lift(work)
    work.program.gm.recompile()
    return work
