"""What norms a model has, by its modules and by the operators in its graph; the recogniser has no part in it.

* every operator that is a norm by name;
* every root (``rsqrt``, ``sqrt``, ``pow(+-0.5)``, a vector norm, a standard deviation) of a reduction
  that multiplies or divides a larger tensor;
* every call of a module that has *Norm* in the name of its class, and a forward of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.fx import Graph, Node

__all__ = ["called_norms", "native_norms", "roots"]

aten = torch.ops.aten
NATIVE = {
    aten.layer_norm.default, aten.rms_norm.default, aten.batch_norm.default, aten.group_norm.default,
    aten.instance_norm.default, aten.native_layer_norm.default, aten.native_group_norm.default,
}  # fmt: skip
_REDUCTIONS = ("mean", "sum", "var", "var_mean", "std_mean", "einsum", "linalg_vecdot")
_ROOTS = ("rsqrt", "sqrt")
_WHOLE_ROOTS = ("linalg_vector_norm", "linalg_norm", "norm", "std", "frobenius_norm")
_POINTWISE = (
    "add", "clamp", "clamp_min", "maximum", "mul", "div", "to", "_to_copy", "unsqueeze", "view", "reshape",
    "pow", "square", "getitem", "expand", "expand_as", "reciprocal", "sub", "type_as", "where", "masked_fill",
    "addcmul", "relu", "abs", "neg",
)  # fmt: skip


def native_norms(graph: Graph) -> list[Node]:
    """Calls of operators that are norms by name."""
    return [n for n in graph.nodes if n.target in NATIVE]


def roots(graph: Graph) -> list[Node]:
    """Roots of a reduction that multiply or divide a larger tensor."""
    return [n for n in graph.nodes if _is_root(n) and _scales_a_larger_tensor(n)]


def _name(node: Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).removeprefix("aten::")
    return str(getattr(target, "__name__", target))


def _is_root(node: Node) -> bool:
    name = _name(node)
    if node.op != "call_function" or not _is_floating(node):
        return False
    if name in _WHOLE_ROOTS:
        return _elements(node) < _elements(node.args[0])
    halves = name == "pow" and len(node.args) > 1 and node.args[1] in (0.5, -0.5)
    return (name in _ROOTS or halves) and _comes_from_reduction(node.args[0])


def _is_floating(node: object) -> bool:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _elements(node: object) -> int:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return int(value.numel()) if isinstance(value, torch.Tensor) else 0


def _comes_from_reduction(value: object, depth: int = 6) -> bool:
    if not isinstance(value, Node) or value.op != "call_function" or depth == 0:
        return False
    if _name(value) in (*_REDUCTIONS, *_WHOLE_ROOTS):
        return True
    first = [a for a in value.all_input_nodes if _is_floating(a) or _name(value) == "getitem"]
    return _name(value) in _POINTWISE and any(_comes_from_reduction(a, depth - 1) for a in first)


def _scales_a_larger_tensor(root: Node) -> bool:
    """Follow the root through small operators to products with something larger."""
    size, stack, seen = _elements(root), [root], {root}
    while stack:
        node = stack.pop()
        for user in node.users:
            if _name(user) in ("mul", "div", "addcmul", "addcdiv") and _is_larger(user, node, size):
                return True
            small = _name(user) in _POINTWISE and _elements(user) <= max(size, _elements(node))
            if user not in seen and (small or _name(user) in ("expand", "expand_as", "mul", "div")):
                seen.add(user)
                stack.append(user)
    return False


def _is_larger(product: Node, factor: Node, size: int) -> bool:
    if _name(product) == "div" and product.args[0] is factor:
        return False
    others = [a for a in product.all_input_nodes if a is not factor]
    return any(_elements(other) > size and _is_data(other) for other in others)


def _is_data(node: Node) -> bool:
    return node.op == "call_function" or "val" in node.meta


@contextmanager
def called_norms(model: torch.nn.Module) -> Iterator[Counter[tuple[str, str]]]:
    """Count calls of norm modules, by path and class, while the model runs."""
    calls: Counter[tuple[str, str]] = Counter()
    handles = []
    for path, module in model.named_modules():
        if _is_norm_class(type(module)) and not _has_norm_inside(module):
            name = type(module).__name__
            handles.append(module.register_forward_hook(lambda *_, key=(path, name): calls.update([key])))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _is_norm_class(kind: type) -> bool:
    return "norm" in kind.__name__.lower()


def _has_norm_inside(module: torch.nn.Module) -> bool:
    inner: Iterable[torch.nn.Module] = list(module.modules())[1:]
    return any(_is_norm_class(type(m)) for m in inner)
