"""Statistics inside the scale and the shift of a norm, told apart from its weight and bias.

    x * s + t,    s = weight * rsqrt(variance + eps),    t = bias - mean * s        (FrozenBatchNorm2d)

Told apart, it is described as the batch norm that it is, and its mean is known.
"""

from __future__ import annotations

from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.changed import changed
from normfuse.ir.region import Operands
from normfuse.ir.sizes import same, shape_of

__all__ = ["added_eps", "exact_root", "told_apart", "under_root"]

_VIEWS = (aten.reshape.default, aten.view.default, aten.unsqueeze.default)


def told_apart(operands: Operands) -> tuple[Operands, float] | None:
    """The operands with mean and variance among them, and eps; None where the arithmetic is another one."""
    factor, added = _entries(operands.scale), _entries(operands.shift)
    if factor is None or added is None or operands.mean is not None or operands.variance is not None:
        return None
    weight, root, eps = _weight_and_root(factor)
    bias, centre = _bias_and_mean(added, factor)
    found = [n for n in (weight, bias, centre, root) if isinstance(n, Node) and _alike(n, factor)]
    if eps is None or len(found) < 4:
        return None
    scale, shift, mean, variance = found
    return changed(operands, scale=scale, shift=shift, mean=mean, variance=variance), eps


def _entries(value: Node | None) -> Node | None:
    """A vector before axes of size one were put beside it."""
    while value is not None and is_call(value, *_VIEWS) and _alike(inner := bind(value)["self"], value):
        value = inner
    return value


def _alike(a: Node, b: Node) -> bool:
    """Whether both are vectors of one length, but for axes of size one."""
    left, right = (_long(node) for node in (a, b))
    return len(left) == len(right) == 1 and same(left[0], right[0])


def _long(node: Node) -> list[object]:
    return [size for size in shape_of(node) or () if not same(size, 1)]


def _weight_and_root(scale: Node) -> tuple[object, Node | None, float | None]:
    """Weight, variance and eps."""
    divides = is_call(scale, aten.div.Tensor)
    if not divides and not is_call(scale, aten.mul.Tensor):
        return None, None, None
    orders = [scale.args[:2]] if divides else [scale.args[:2], scale.args[1::-1]]
    for weight, root in orders:
        found = exact_root(root, divides)
        if found is not None:
            return weight, *found
    return None, None, None


def _bias_and_mean(shift: Node, scale: Node) -> tuple[object, object]:
    if not is_call(shift, aten.sub.Tensor) or bind(shift)["alpha"] != 1:
        return None, None
    bias, product = shift.args[:2]
    if not is_call(product, aten.mul.Tensor):
        return None, None
    left, right = product.args[:2]  # type: ignore[union-attr]
    if left is scale or right is scale:
        return bias, right if left is scale else left
    return None, None


def exact_root(factor: object, divides: bool) -> tuple[Node, float] | None:
    """Variance and eps where the factor is ``1 / sqrt(variance + eps)`` and nothing else."""
    root = factor
    if isinstance(root, Node) and not divides and is_call(root, aten.reciprocal.default):
        root, divides = root.args[0], True
    if not isinstance(root, Node):
        return None
    power = root.args[1] if is_call(root, aten.pow.Tensor_Scalar) else None
    wanted = (aten.sqrt.default, 0.5) if divides else (aten.rsqrt.default, -0.5)
    if not is_call(root, wanted[0]) and power != wanted[1]:
        return None
    inner = under_root(root)
    eps = added_eps(inner)
    return None if eps is None else (bind(inner)["self"], eps)  # type: ignore[arg-type]


def under_root(node: Node) -> object:
    """What a root is taken of."""
    if is_call(node, aten.rsqrt.default, aten.sqrt.default):
        return node.args[0]
    halves = is_call(node, aten.pow.Tensor_Scalar) and node.args[1] in (0.5, -0.5)
    return node.args[0] if halves else None


def added_eps(node: object) -> float | None:
    """The number in ``variance + eps``."""
    if not isinstance(node, Node) or not is_call(node, aten.add.Tensor, aten.add.Scalar):
        return None
    eps = bind(node)["other"]
    return float(eps) if isinstance(eps, (int, float)) and bind(node)["alpha"] == 1 else None
