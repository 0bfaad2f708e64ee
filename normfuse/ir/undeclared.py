"""What operators do that their schemas do not say: return views, write statistics, vary between calls."""

from __future__ import annotations

from functools import cache

import torch
from torch._ops import OpOverload

from normfuse.ir.calls import aten
from normfuse.torch_compat import decomposes

__all__ = [
    "KEEPS_STATISTICS",
    "NEW_MEMORY",
    "RETURNS_INPUT",
    "is_builtin",
    "is_pure",
    "may_differ",
    "may_return_input",
]

#: Operators that update running statistics: the argument that asks for it.
KEEPS_STATISTICS = {aten.batch_norm.default: "training", aten.instance_norm.default: "use_input_stats"}

#: Operators with kernels of their own that return an input, or a view of one.
RETURNS_INPUT = frozenset((
    aten._unsafe_view.default, aten.dequantize.self, aten.lift.default, aten.set.source_Tensor,
    aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default,
))  # fmt: skip

#: Operators made of others that never return a view, in all their overloads. Any other may.
NEW_MEMORY = frozenset((
    # contractions
    "linear", "matmul", "bilinear", "inner", "outer", "kron", "tensordot", "linalg_matmul", "linalg_vecdot",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "scaled_dot_product_attention", "_scaled_dot_product_attention_math",
    # norms and statistics
    "layer_norm", "rms_norm", "_fused_rms_norm", "group_norm", "instance_norm", "_weight_norm", "softmax",
    "log_softmax", "special_softmax", "special_log_softmax", "cosine_similarity", "frobenius_norm",
    "linalg_norm", "linalg_matrix_norm", "var", "var_mean", "std", "std_mean", "nanmean",
    "special_logsumexp",
    # element by element
    "__and__", "__or__", "__xor__", "absolute", "clip", "cross", "divide", "float_power", "greater",
    "greater_equal", "isclose", "isfinite", "isreal", "less", "less_equal", "log_sigmoid", "max", "min",
    "multiply", "negative", "not_equal", "prelu", "relu6", "selu", "special_erf", "special_expit",
    "special_expm1", "special_log1p", "special_xlogy", "square", "subtract", "true_divide", "where",
    # positions
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "argsort", "avg_pool1d", "column_stack", "concat", "concatenate", "diag", "diff", "dstack",
    "embedding_bag", "fliplr", "flipud", "grid_sampler", "hstack", "max_pool1d", "max_pool2d", "max_pool3d",
    "msort", "one_hot", "pad", "repeat_interleave", "row_stack", "take_along_dim", "tile",
    "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_trilinear3d", "vstack",
    # losses
    "cross_entropy_loss", "kl_div", "l1_loss", "nll_loss", "nll_loss_nd",
))  # fmt: skip

#: Operators that read memory rather than entries, which a copy in other precision does not share.
_READS_MEMORY = (aten.as_strided.default, aten.view.dtype)
#: Operators that return whatever memory holds.
_UNINITIALISED = frozenset((
    "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided",
))  # fmt: skip


def is_builtin(target: OpOverload) -> bool:
    """Whether an operator is PyTorch's own, so that its tags and its kernels are known."""
    return target.namespace in ("aten", "prims")


@cache
def may_return_input(target: OpOverload) -> bool:
    """Whether a result may be an input or a view of one although the schema does not say so.

    A composite operator that is not known to make new memory may return views, as those it is made of
    may, and so may an operator that is not PyTorch's.
    """
    if not is_builtin(target) or target in RETURNS_INPUT:
        return True
    if torch.Tag.maybe_aliasing_or_mutating in target.tags:
        return True
    return _base(target) not in NEW_MEMORY and decomposes(target)


@cache
def is_pure(target: OpOverload) -> bool:
    """Whether a result depends on the entries of the operands and nothing else, at every call.

    Nothing says so of an operator that is not PyTorch's: no tag exists for it.
    """
    return target not in _READS_MEMORY and not may_differ(target)


@cache
def may_differ(target: OpOverload) -> bool:
    """Whether equal operands may give another result at each call."""
    if not is_builtin(target) or _base(target) in _UNINITIALISED:
        return True
    return torch.Tag.nondeterministic_seeded in target.tags


def _base(target: OpOverload) -> str:
    """The name without namespace and overload."""
    return str(target._schema.name).rpartition("::")[2]
