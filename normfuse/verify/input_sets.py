"""What a program is run on while it is verified: the inputs it came with, random ones, and hostile ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from normfuse.ir.program import Program
from normfuse.verify.hostile import QUICK, hostile_inputs
from normfuse.verify.index_bounds import index_bound
from normfuse.verify.programs import cases_of

__all__ = ["CAPTURED", "InputSet", "sets_of_export", "sets_of_graph"]

CAPTURED = "captured"
"""The name of the inputs that a program came with."""

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class InputSet:
    """A value for every placeholder; only on ``CAPTURED`` inputs has the program to be judged."""

    name: str
    values: list[Any]
    hostile: bool = False


def sets_of_export(exported: ExportedProgram, program: Program, thorough: bool = False) -> list[InputSet]:
    """The inputs on which :func:`normfuse.verify` compares two programs."""
    return [
        InputSet(
            CAPTURED if case.kind == "stored" else case.name,
            _in_order(program, pytree.tree_leaves((case.args, case.kwargs))),
            case.kind == "hostile",
        )
        for case in cases_of(exported, thorough=thorough)
    ]


def sets_of_graph(program: Program, inputs: Sequence[Any], thorough: bool = False) -> list[InputSet]:
    """The inputs that a graph was captured with, and hostile ones like them."""
    passed = [(i.node, value) for i, value in zip(program.inputs, inputs, strict=True) if not i.is_weight]
    bounds = [
        index_bound(node) if isinstance(v, torch.Tensor) and v.dtype in _INTEGERS else None
        for node, v in passed
    ]
    chosen = hostile_inputs([v for _, v in passed], bounds=bounds, names=None if thorough else QUICK)
    hostile = [InputSet(name, _in_order(program, made, inputs), True) for name, made in chosen]
    return [InputSet(CAPTURED, list(inputs)), *hostile]


def _in_order(program: Program, passed: Sequence[Any], inputs: Sequence[Any] | None = None) -> list[Any]:
    """What the caller passes at its places, among the weights."""
    fresh = iter(passed)
    held = [i.value for i in program.inputs] if inputs is None else inputs
    pairs = zip(program.inputs, held, strict=True)
    return [value if i.is_weight else next(fresh, None) for i, value in pairs]
