"""The graphs of a model: by ``torch.export``, and by Dynamo with a backend that only looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from bench.corpus.judging import Score, judge
from normfuse.capture.exported import program_of
from normfuse.ir.program import Program, Role

__all__ = ["by_dynamo", "by_export"]


def by_export(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Score, list[str]]:
    """Export, judge, and run the lifted graph beside the captured one."""
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs, strict=False)
    program = program_of(exported)
    arguments = _arguments(program, inputs)
    wanted = _run(exported.graph_module, arguments)
    score, modules = judge(program)
    score.bitwise = _same_bits(wanted, _run(program.gm, arguments))
    return score, modules


def _arguments(program: Program, inputs: dict[str, Any]) -> list[Any]:
    given = iter(tree_leaves(inputs))
    return [next(given) if i.role is Role.USER else i.value for i in program.inputs]


def _run(gm: GraphModule, arguments: Sequence[Any]) -> list[Any]:
    torch.manual_seed(0)
    copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    with torch.no_grad():
        return tree_leaves(torch.fx.Interpreter(gm).run(*copies))


def _same_bits(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.nan_to_num(), y.nan_to_num()) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )


def by_dynamo(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Score, list[str], int]:
    """Let Dynamo capture every graph of one call; nothing is compiled."""
    from normfuse.backends.dynamo import capture

    total, modules, graphs = Score(), [], 0

    def look(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        nonlocal graphs
        program, _ = capture(gm, example_inputs)
        score, found = judge(program)
        total.add(score)
        modules.extend(found)
        graphs += 1
        run: Callable[..., Any] = gm.forward
        return run

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=look)(**inputs)
    return total, modules, graphs
