"""Recipes as plain values, so that they can be kept in a file and run later without the model.

A step is one ATen operator: its name, its arguments, and whether it belongs to a map (and is computed in
float64). What an argument is says its one key: ``{"step": "source_0"}``, ``{"dtype": "float32"}``.
"""

from __future__ import annotations

import base64
import ctypes
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node

from normfuse.errors import InputError
from normfuse.folding.recipe import FOLD, Recipe

__all__ = [
    "decode_recipe",
    "decode_tensor",
    "dtype_name",
    "dtype_named",
    "encode_recipe",
    "encode_tensor",
]

Plain = Any

#: One of several results.
_GETITEM = "getitem"


def encode_recipe(recipe: Recipe) -> list[dict[str, Plain]]:
    """The steps of a recipe, in order; the last one's value is the folded weight.

    Raises:
        InputError: for an operator that is not PyTorch's own.
    """
    steps = []
    for node in recipe.body.nodes:
        if node.op == "get_attr":
            value = getattr(recipe.root, str(node.target))
            steps.append({"name": node.name, "constant": encode_tensor(value)})
        elif node.op == "call_function":
            steps.append(_step(node))
    result = recipe.body.output_node().args[0]
    assert isinstance(result, Node)
    return [*steps, {"name": "result", "of": result.name}]


def _step(node: Node) -> dict[str, Plain]:
    name = _GETITEM if node.target is operator.getitem else str(node.target)
    _operator(name)
    args = [_encode(a) for a in node.args]
    kwargs = {k: _encode(v) for k, v in node.kwargs.items()}
    return {
        "name": node.name,
        "operator": name,
        "args": args,
        "kwargs": kwargs,
        "exact": FOLD in node.meta,
    }


def _encode(value: Any) -> Plain:
    if isinstance(value, Node):
        return {"step": value.name}
    if isinstance(value, (list, tuple)):
        return [_encode(v) for v in value]
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, (torch.layout, torch.memory_format, torch.device)):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"a recipe cannot hold {value!r}")


def decode_recipe(steps: Plain, sources: int, dtype: torch.dtype, label: str) -> Recipe:
    """The recipe that :func:`encode_recipe` wrote.

    Raises:
        InputError: for anything that is not a computation of pure ATen operators on tensors.
    """
    graph, root = Graph(), torch.nn.Module()
    made = {f"source_{i}": graph.placeholder(f"source_{i}") for i in range(sources)}
    try:
        for step in steps[:-1]:
            made[step["name"]] = _add(graph, root, step, made)
        graph.output(made[steps[-1]["of"]])
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the steps of {label} are damaged: {type(error).__name__}: {error}") from error
    return Recipe(graph, root, dtype, key=f"map of {label}", label=label)


def _add(graph: Graph, root: torch.nn.Module, step: dict[str, Plain], made: dict[str, Node]) -> Node:
    if "constant" in step:
        name = f"constant_{len(made)}"
        root.register_buffer(name, decode_tensor(step["constant"]))
        return graph.get_attr(name)
    args = tuple(_decode(a, made) for a in step["args"])
    kwargs = {str(k): _decode(v, made) for k, v in step["kwargs"].items()}
    node = graph.call_function(_operator(step["operator"]), args, kwargs)
    if step["exact"] is True:
        node.meta[FOLD] = True
    return node


def _operator(name: Plain) -> Callable[..., Any]:
    """An operator of ATen that only computes: it takes a tensor, returns new ones and writes to none."""
    if name == _GETITEM:
        return operator.getitem
    namespace, _, rest = str(name).partition(".")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None) if namespace == "aten" else None
    if not isinstance(found, OpOverload):
        raise InputError(f"{name!r} is not an operator of this PyTorch")
    takes_tensor = any("Tensor" in str(a.type) for a in found._schema.arguments)
    if found._schema.is_mutable or not (takes_tensor or packet in _FACTORIES):
        raise InputError(f"the operator {name!r} has no place in a weight's recipe")
    return found


_FACTORIES = ("full", "ones", "zeros", "arange", "eye", "scalar_tensor")


def _decode(value: Plain, made: dict[str, Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, made) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "step":
        return made[held]
    if kind == "float":
        return float(held)
    if kind == "device":
        return torch.device("cpu")  # folding a file is done there, wherever the program ran
    expected = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}[kind]
    return _named(held, expected)


def _named(name: Plain, kind: type) -> Any:
    found = getattr(torch, str(name), None)
    if not isinstance(found, kind):
        raise InputError(f"there is no {kind.__name__} called {name!r}")
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: Plain) -> torch.dtype:
    """``torch.float32`` for ``float32``.

    Raises:
        InputError: when there is no such dtype.
    """
    found: torch.dtype = _named(name, torch.dtype)
    return found


def encode_tensor(value: torch.Tensor) -> dict[str, Plain]:
    """A tensor with its bytes."""
    held = value.detach().cpu().contiguous()
    data = ctypes.string_at(held.data_ptr(), held.numel() * held.element_size())
    return {
        "dtype": dtype_name(held.dtype),
        "shape": list(held.shape),
        "data": base64.b64encode(data).decode("ascii"),
    }


def decode_tensor(value: Plain) -> torch.Tensor:
    """The tensor that :func:`encode_tensor` wrote."""
    dtype = dtype_named(value["dtype"])
    data = bytearray(base64.b64decode(value["data"], validate=True))
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(value["shape"]).clone()
