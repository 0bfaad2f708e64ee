"""Statistics inside the scale and the shift of a norm, told apart from its weight and bias.

    x * s + t,    s = weight * rsqrt(variance + eps),    t = bias - mean * s        (FrozenBatchNorm2d)
    x * (s + skip) + t                                                     (RepBN: Guo et al. 2024, eq. 6)

Told apart, it is described as the norm that it is, and the statistics of the first are known.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.changed import changed
from normfuse.ir.region import Operands
from normfuse.ir.sizes import same, shape_of

__all__ = [
    "alike",
    "entries",
    "exact_root",
    "kind_of",
    "product_with",
    "stored_root",
    "told_apart",
]

_REPEATS = (aten.expand.default, aten.expand_as.default)
_ADD_EPS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor)
_AT_LEAST = (
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp.Tensor,
    aten.clamp_min.Tensor,
    aten.maximum.default,
)
_VIEWS = (aten.reshape.default, aten.view.default, aten.unsqueeze.default)


def told_apart(operands: Operands) -> tuple[Operands, float] | None:
    """The operands with mean and variance among them, and eps; None where the arithmetic is another one."""
    core, value = entries(operands.scale), entries(operands.shift)
    found = _weight_and_root(core)
    if found is None or not is_call(value, aten.sub.Tensor) or operands.mean or operands.variance:
        return None
    bias, mean = _bias_and_mean(value, core)
    scale, variance, eps = found
    if not all(alike(vector, core) for vector in (scale, variance, bias, mean)):
        return None
    return changed(operands, scale=scale, shift=bias, mean=mean, variance=variance), eps


def kind_of(operands: Operands, factor: Node) -> str:
    """What a norm is that multiplies by ``factor``: a skip or a mean may be hidden in what it is made of."""
    core, skip = _without_skip(entries(factor))
    if skip is not None:
        return "rep_batch_norm"
    hidden = operands.mean or _bias_and_mean(operands.shift, core)[1]
    return "batch_norm" if hidden or _shares(operands.shift, operands.scale) else "unified_norm"


def _shares(value: Node | None, part: Node | None) -> bool:
    return value is not None and part is not None and part in _made_of(value)


def entries(value: object) -> Node | None:
    """A vector before axes of size one were put beside it, and before it was repeated along other axes."""
    while is_call(value, *_VIEWS, *_REPEATS):
        inner = bind(value)["self"]  # type: ignore[arg-type]
        if not (is_call(value, *_REPEATS) or alike(inner, value)):
            break
        value = inner
    return value if isinstance(value, Node) else None


def alike(a: object, b: object) -> bool:
    """Whether both are vectors of one length, but for axes of size one."""
    left, right = _long(a), _long(b)
    return len(left) == len(right) == 1 and same(left[0], right[0])


def _long(node: object) -> list[object]:
    return [size for size in shape_of(node) or () if not same(size, 1)]


def _without_skip(factor: Node | None) -> tuple[Node | None, Node | None]:
    """``s`` and what is added to it, one number for all channels or one for each."""
    if is_call(factor, aten.add.Tensor) and bind(factor)["alpha"] == 1:  # type: ignore[arg-type]
        for one, skip in (factor.args[:2], factor.args[1::-1]):  # type: ignore[union-attr]
            core, fits = entries(one), isinstance(skip, Node) and (not _long(skip) or alike(skip, factor))
            if fits and _weight_and_root(core) is not None:
                return core, skip  # type: ignore[return-value]
    return factor, None


def _weight_and_root(scale: Node | None) -> tuple[Node | None, Node, float] | None:
    """Weight, variance and eps."""
    alone = exact_root(scale, divides=False)
    if alone is not None:
        return None, *alone
    divides = is_call(scale, aten.div.Tensor)
    if scale is None or not (divides or is_call(scale, aten.mul.Tensor)):
        return None
    for weight, root in [scale.args[:2]] if divides else [scale.args[:2], scale.args[1::-1]]:
        found = exact_root(root, divides)
        if found is not None and isinstance(weight, Node):
            return weight, *found
    return None


def _bias_and_mean(shift: Node | None, scale: Node | None) -> tuple[Node | None, Node | None]:
    """Bias and mean, each where there is one."""
    value = entries(shift)
    mean = _negative_product(value, scale)
    if mean is not None:
        return None, mean
    if is_call(value, aten.sub.Tensor, aten.add.Tensor) and bind(value)["alpha"] == 1:  # type: ignore[arg-type]
        left, right = value.args[:2]  # type: ignore[union-attr]
        if is_call(value, aten.sub.Tensor):
            found = [(left, product_with(right, scale))]
        else:
            found = [(left, _negative_product(right, scale)), (right, _negative_product(left, scale))]
        for bias, mean in found:
            if mean is not None and isinstance(bias, Node):
                return bias, mean
    return shift, None


def _negative_product(value: object, scale: Node | None) -> Node | None:
    """The mean in ``-mean * scale``."""
    if is_call(value, aten.neg.default):
        return product_with(value.args[0], scale)  # type: ignore[attr-defined]
    negative = product_with(value, scale)
    inner = negative.args[0] if negative is not None and is_call(negative, aten.neg.default) else None
    return inner if isinstance(inner, Node) else None


def product_with(value: object, scale: Node | None) -> Node | None:
    """What is multiplied by ``scale`` here."""
    product = entries(value)
    if scale is None or product is None or not is_call(product, aten.mul.Tensor):
        return None
    left, right = product.args[:2]
    other = right if entries(left) is scale else left if entries(right) is scale else None
    return other if isinstance(other, Node) else None


def exact_root(factor: object, divides: bool) -> tuple[Node, float] | None:
    """Variance and eps where the factor is ``1 / sqrt(variance + eps)`` and nothing else.

    An eps that is no number is part of the variance.
    """
    root = entries(factor)
    if not divides and is_call(root, aten.mul.Tensor) and root.args[1] == 1:  # type: ignore[union-attr]
        root = entries(root.args[0])  # type: ignore[union-attr]
    if not divides and is_call(root, aten.reciprocal.default):
        root, divides = entries(root.args[0]), True  # type: ignore[union-attr]
    if root is None:
        return None
    power = root.args[1] if is_call(root, aten.pow.Tensor_Scalar) else None
    wanted = (aten.sqrt.default, 0.5) if divides else (aten.rsqrt.default, -0.5)
    return _bounded(_under_root(root)) if is_call(root, wanted[0]) or power == wanted[1] else None


def stored_root(factor: Node) -> float | None:
    """The eps beside a root in what a weight value is made of; zero where it is no number under the root."""
    parts = list(_made_of(factor))
    roots = [node for node in parts if isinstance(_under_root(node), Node)]
    for root in roots:
        found = next(filter(None, map(_bounded, _made_of(root))), None)
        if found is not None:
            return found[1]
    outside = any(is_call(n, *_ADD_EPS, *_AT_LEAST) and n.args[0] in roots for n in parts)
    return 0.0 if outside else None


def _made_of(value: Node) -> Iterator[Node]:
    """A value and all that it is made of, the nearest first."""
    seen, stack = {value}, [value]
    while stack:
        node = stack.pop()
        yield node
        fresh = [n for n in node.all_input_nodes if n not in seen]
        seen.update(fresh)
        stack.extend(fresh)


def _under_root(node: Node) -> object:
    """What a root is taken of."""
    if is_call(node, aten.rsqrt.default, aten.sqrt.default):
        return node.args[0]
    halves = is_call(node, aten.pow.Tensor_Scalar) and node.args[1] in (0.5, -0.5)
    return node.args[0] if halves else None


def _bounded(value: object) -> tuple[Node, float] | None:
    """``variance + eps``, and what else keeps a variance from zero, which is a variance with no eps."""
    if not isinstance(value, Node) or not is_call(value, *_ADD_EPS, *_AT_LEAST):
        return None
    if is_call(value, *_ADD_EPS):
        bound = bind(value)
        eps, sign = bound["other"], -1 if is_call(value, aten.sub.Tensor) else 1
        if isinstance(eps, (int, float)) and bound["alpha"] == 1:
            return bound["self"], sign * float(eps)
    return value, 0.0
