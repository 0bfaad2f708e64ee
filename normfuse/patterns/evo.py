"""EvoNorms: values gated by themselves, or divided by the larger of two deviations.

    B0:  x / max(sqrt(batch var + eps), v x + sqrt(instance var + eps))
    S0:  x sigmoid(v x) / sqrt(group var + eps)

(Liu et al. 2020, arXiv 2004.02967, table 2). Neither is a map that weights could take, in evaluation either.
"""

from __future__ import annotations

from collections.abc import Container

from torch.fx import Node

from normfuse.ir.calls import CASTS, aten, is_call
from normfuse.ir.location import described
from normfuse.ir.moves import is_move
from normfuse.ir.sizes import rank_of, same_shape
from normfuse.patterns.operands import is_stored
from normfuse.report import Refusal

__all__ = ["evo_norm"]

_GATES = (aten.sigmoid.default, aten.silu.default)
_LARGER = (aten.maximum.default, aten.max.other)
_HANDS_ON = (
    *CASTS, aten.expand.default, aten.expand_as.default, aten.repeat.default, aten.reciprocal.default,
    aten.sqrt.default, aten.rsqrt.default,
)  # fmt: skip
_MADE_OF_STORED = (
    *_HANDS_ON, aten.add.Tensor, aten.add.Scalar, aten.mul.Tensor, aten.square.default,
    aten.pow.Tensor_Scalar, aten.clamp.default, aten.clamp_min.default,
)  # fmt: skip


def evo_norm(product: Node, divided: Node, root: Node, weights: Container[Node]) -> Refusal | None:
    """Why nothing takes an EvoNorm, where ``product`` divides values by ``root``, or multiplies by it."""
    if _is_gated(divided):
        return Refusal(
            "nonlinear_norm",
            f"{described(product)} divides values that a sigmoid of themselves gates by a deviation of the "
            "same sample (EvoNorm-S0), in evaluation too: weights can do neither", product.name,
        )  # fmt: skip
    larger = _larger(root, product)
    if larger is None:
        return None
    stored = any(_is_of_the_model(operand, weights) for operand in larger.all_input_nodes)
    return Refusal(
        "nonlinear_norm",
        f"{described(product)} divides values by the larger of "
        f"{'a stored deviation' if stored else 'the deviation of the batch'} and of what the values and the "
        "deviation of their own sample make (EvoNorm-B0), so that no scale is a constant", product.name,
    )  # fmt: skip


def _is_gated(divided: Node) -> bool:
    """Whether values are multiplied by a sigmoid, or are a SiLU."""
    value = _behind(divided)
    if is_call(value, aten.silu.default):
        return True
    factors = value.all_input_nodes if is_call(value, aten.mul.Tensor) else []
    return any(is_call(_behind(factor), *_GATES) for factor in factors)


def _larger(root: Node, product: Node) -> Node | None:
    """The operator of which a divisor was made, that chose the larger of two tensors for each value."""
    value = _behind(root)
    operands = value.all_input_nodes if is_call(value, *_LARGER) else []
    has_own = any(same_shape(operand, product) for operand in operands)
    return value if has_own and len(operands) == 2 and all(map(rank_of, operands)) else None


def _behind(value: Node) -> Node:
    """What a value was made of that was only moved, cast, repeated or inverted since."""
    while (is_move(value) or is_call(value, *_HANDS_ON)) and isinstance(value.args[0], Node):
        value = value.args[0]
    return value


def _is_of_the_model(value: Node, weights: Container[Node]) -> bool:
    while value not in weights and not is_stored(value):
        if not (is_move(value) or is_call(value, *_MADE_OF_STORED)) or len(value.all_input_nodes) != 1:
            return False
        (value,) = value.all_input_nodes
    return True
