"""Values that the model centres itself, ahead of a norm that centres them again.

    y = x - mean(x) = C x,    so that  LN(y) = LN(x)  and  C y = C x

Where weights write ``x`` without a mean, the subtraction has nothing left to do. Where they do not it stays,
and so does the norm's own centring: the mean is rounded to ``u |mean|``, which all of ``y`` has as its mean
then, and a norm that did not take it away would be wrong by ``u |mean| / std`` where this one is by ``u``.
"""

from __future__ import annotations

from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.readers import value_readers
from normfuse.ir.sizes import lies_alike, rank_of, tensor_of

__all__ = ["centred_by_hand", "is_own_mean"]


def centred_by_hand(node: Node) -> tuple[Node, int] | None:
    """The value and the axis along which ``node`` is that value without its mean; None for all else."""
    if not is_call(node, aten.sub.Tensor) or bind(node)["alpha"] != 1:
        return None
    value, mean = bind(node)["self"], bind(node)["other"]
    if not isinstance(value, Node) or not is_call(mean, aten.mean.dim):
        return None
    axis = _averaged(mean, value)
    before, after = tensor_of(value), tensor_of(node)
    if axis is None or before is None or after is None or before.dtype != after.dtype:
        return None
    return (value, axis) if lies_alike(value, node) else None


def is_own_mean(node: Node, value: Node, axis: int) -> bool:
    """Whether ``node`` is the mean of a value along an axis, which nothing reads but to take it away."""
    if not is_call(node, aten.mean.dim):
        return False
    return all(centred_by_hand(user) == (value, axis) for user in value_readers(node))


def _averaged(mean: Node, value: Node) -> int | None:
    """The one axis, which has to stay as an axis of size one."""
    read = bind(mean)
    dims = read["dim"]
    if read["self"] is not value or not read["keepdim"] or not dims or len(dims) != 1:
        return None
    return int(dims[0] % rank_of(value))
