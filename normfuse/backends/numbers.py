"""Numbers that Dynamo leaves open, such as the eps of a module under ``dynamic=True``.

PyTorch's own norms read eps as a constant, with a guard, however open the sizes are. A norm that is written
out gets the same: Dynamo traces once more with the number in its place, and compiles anew when it changes.
A number that goes on changing is left open after a few values, and the report says so.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType

import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch._dynamo.symbolic_convert import TensorifyState
from torch._guards import GuardSource
from torch.fx import GraphModule, Node

from normfuse.backends.dynamo import compiling_code, input_name, place_of

__all__ = ["close_numbers", "one_compilation"]

#: How many values of one number are compiled for before it is left open.
_MOST = 3
#: What takes a root, and so may be part of a norm, beside all that has one in its name.
_ROOTS = ("sqrt", "rsqrt", "pow", "std")


@dataclass(frozen=True)
class _Number:
    """A float that Dynamo hands in as a tensor of no axes, from which alone its ``item`` is read."""

    name: str
    place: str
    symbol: str
    value: float
    is_given: bool


#: By the function that is compiled and the place where it reads a number: its values that are guarded.
_values: weakref.WeakKeyDictionary[CodeType, dict[str, set[float]]] = weakref.WeakKeyDictionary()
#: Symbols that Dynamo was asked to replace in the compilation that is going on.
_asked: set[str] = set()


@contextmanager
def one_compilation() -> Iterator[None]:
    """What Dynamo was asked for is asked for no longer once a function is compiled, or cannot be."""
    try:
        yield
    except TensorifyScalarRestartAnalysis:
        raise
    except BaseException:
        _forget()
        raise
    else:
        _forget()


def close_numbers(gm: GraphModule) -> list[str]:
    """Have Dynamo trace again with constants where norms may read open numbers of the model.

    Returns a note on those that stay open, if there are any.

    Raises:
        TensorifyScalarRestartAnalysis: where there are numbers to replace; Dynamo expects it.
    """
    values, found = _values_guarded(), list(_open_numbers(gm))
    if not found or not _may_hold_norms(gm):
        return []
    closed = [number for number in found if _may_close(number, values)]
    if closed:
        fresh = {number.symbol for number in closed} - TensorifyState.force_specializations
        _asked.update(fresh)
        TensorifyState.force_specializations |= fresh
        raise TensorifyScalarRestartAnalysis
    return [_note(found)]


def _forget() -> None:
    TensorifyState.force_specializations -= _asked
    _asked.clear()


def _open_numbers(gm: GraphModule) -> Iterator[_Number]:
    for node in gm.graph.find_nodes(op="placeholder"):
        number = getattr(node.meta.get("example_value"), "item_memo", None)
        source = getattr(node, "_dynamo_source", None)
        if not isinstance(number, torch.SymFloat) or source is None or number.node.expr.is_number:
            continue
        symbol, is_read_alone = number.node._expr, all(user.target == "item" for user in node.users)
        if symbol.is_symbol and is_read_alone:
            kind = source.guard_source() if callable(source.guard_source) else source.guard_source
            is_given = kind is GuardSource.LOCAL
            yield _Number(input_name(node), place_of(node), symbol.name, number.node.hint, is_given)


def _values_guarded() -> dict[str, set[float]]:
    """For the function that is being compiled; none where nothing of it is compiled."""
    code = compiling_code()
    if code is None:
        return {}
    if not _asked and not _debug_get_cache_entry_list(code):
        _values.pop(code, None)
    return _values.setdefault(code, {})


def _may_close(number: _Number, guarded: dict[str, set[float]]) -> bool:
    """Whether a number belongs to the model, and has had few values so far."""
    if number.is_given or number.symbol in _asked:
        return False
    values = guarded.setdefault(number.place, set())
    if len(values) < _MOST:
        values.add(number.value)
    return number.value in values


def _may_hold_norms(gm: GraphModule) -> bool:
    graphs = [module.graph for module in gm.modules() if isinstance(module, GraphModule)]
    called = {_called(node) for graph in graphs for node in graph.nodes if node.op.startswith("call")}
    return any("norm" in name or name in _ROOTS for name in called)


def _called(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _note(numbers: list[_Number]) -> str:
    names = ", ".join(sorted({number.name for number in numbers}))
    return (
        f"numbers that may be others at each call: {names}. Norms that read them are folded into no weights, "
        "and may not be found; compile without dynamic=True where they do not change"
    )
