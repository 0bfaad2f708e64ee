"""Random calls of ATen operators, to see which results lie in the memory of an argument unseen."""

from __future__ import annotations

import faulthandler
import multiprocessing
import random
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

__all__ = ["lies_in_an_argument", "operators", "search", "searched_apart"]


def operators() -> Iterator[OpOverload]:
    """Every overload of ATen that makes tensors of tensors and writes to none."""
    for name in torch._C._dispatch_get_all_op_names():
        base, _, overload = name.removeprefix("aten::").partition(".")
        found = getattr(getattr(torch.ops.aten, base, None), overload or "default", None)
        if name.startswith("aten::") and isinstance(found, OpOverload) and not found._schema.is_mutable:
            given = any("Tensor" in str(a.type) for a in found._schema.arguments)
            if given and any("Tensor" in str(r.type) for r in found._schema.returns):
                yield found


def _tensors() -> list[torch.Tensor]:
    made = [torch.rand(s) + 0.5 for s in ((4, 4), (2, 3, 4), (2, 4, 3, 3), (4,), (), (1, 4, 1), (2, 4, 4))]
    return [*made, torch.arange(4), torch.tensor([True, False, True, True]), torch.randn(4, 4) + 0j]


def _value(argument: Any, draw: random.Random) -> Any:
    """Something of the type, which often asks for nothing: no dimensions, one part, the dtype that is."""
    if argument.has_default_value() and draw.random() < 0.6:
        return argument.default_value
    kind = str(argument.type)
    if kind.startswith("Optional["):
        if draw.random() < 0.5:
            return None
        kind = kind[len("Optional[") : -1]
    if kind in ("int", "SymInt", "number", "Scalar"):
        dtypes = (torch.float32, torch.float64)
        return draw.choice(dtypes if "dtype" in argument.name else (0, 1, 1, 2, -1, 3, 4))
    choices = {
        "Tensor": lambda: draw.choice(_tensors()),
        "List[Tensor]": lambda: [draw.choice(_tensors()) for _ in range(draw.choice((1, 1, 2, 3)))],
        "float": lambda: draw.choice((0.0, 0.5, 1.0)),
        "bool": lambda: draw.random() < 0.5,
        "List[float]": lambda: [draw.choice((0.0, 1.0)) for _ in range(2)],
        "str": lambda: draw.choice(("ij->ij", "ij->ji", "i", "mean", "constant", "none", "reflect")),
    }
    sizes = ("List[int]", "List[SymInt]")
    if kind in sizes:
        return [draw.choice((0, 1, -1, 2, 3, 4)) for _ in range(draw.choice((0, 1, 2, 3, 4)))]
    return choices[kind]() if kind in choices else None


def _storages(value: Any) -> set[int]:
    found = (t for t in tree_leaves(value) if isinstance(t, torch.Tensor))
    return {t.untyped_storage()._cdata for t in found if t.layout is torch.strided and t.numel()}


def lies_in_an_argument(target: OpOverload, given: dict[str, Any]) -> bool:
    """Whether a call's result shares memory with arguments of which the schema says nothing."""
    held = [a for a in target._schema.arguments if a.name in given]
    positional = [given[a.name] for a in held if not a.kwarg_only]
    with torch.no_grad():
        made = target(*positional, **{a.name: given[a.name] for a in held if a.kwarg_only})
    hidden = [given[a.name] for a in held if a.alias_info is None]
    shown = [given[a.name] for a in held if a.alias_info is not None]
    return bool((_storages(made) & _storages(hidden)) - _storages(shown))


def search(target: OpOverload, calls: int, enough: int = 1000) -> tuple[int, bool]:
    """How many of so many random calls ran, and whether one of them returned an argument's memory.

    ``enough`` calls that ran end it.
    """
    draw, ran = random.Random(1), 0
    torch.manual_seed(0)
    for _ in range(calls):
        given = {a.name: _value(a, draw) for a in target._schema.arguments}
        try:
            found = lies_in_an_argument(target, given)
        except Exception:
            continue
        ran += 1
        if found or ran == enough:
            return ran, found
    return ran, False


def searched_apart(target: OpOverload, calls: int) -> bool:
    """Whether a view was found, in a process of its own: kernels may crash on arguments that do not fit."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(target, calls, theirs))
    process.start()
    theirs.close()
    try:
        return bool(ours.poll(5) and ours.recv())
    except EOFError:
        return False
    finally:
        process.kill()
        process.join()
        ours.close()


def _report(target: OpOverload, calls: int, to: Connection) -> None:
    faulthandler.disable()
    to.send(search(target, calls)[1])
