"""Weights that are divided by a statistic of their own, in whatever form, are constants in inference.

    conv(x, f(W))  =>  conv(x, folded),    f(W) holds a mean, a variance or a length of W, and a division

Published code standardises with eps inside of the root and outside of it, by means of means, or removes the
mean last; what is read is the value, so the form does not matter.
"""

from __future__ import annotations

import operator

from torch.fx import Node

from normfuse.analysis.weights import WeightValues
from normfuse.folding.recipe import FOLD
from normfuse.ir.calls import CASTS, aten, bind, is_call
from normfuse.ir.location import module_path, source_line
from normfuse.ir.moves import is_move
from normfuse.ir.readers import ancestors
from normfuse.ir.sizes import rank_of, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.report import Site

__all__ = ["Standardised", "standardised"]

_READERS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding,
    aten.conv2d.padding, aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input,
    aten.conv_transpose3d.input, aten.convolution.default, aten.linear.default,
)  # fmt: skip
_LENGTHS = (aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim)
_STATISTICS = (
    aten.mean.dim, aten.sum.dim_IntList, aten.var.correction, aten.var.dim, aten.std.correction,
    aten.std.dim, aten.var_mean.correction, aten.var_mean.dim, aten.std_mean.correction, aten.std_mean.dim,
)  # fmt: skip
_DIVIDING = (aten.div.Tensor, aten.rsqrt.default, aten.reciprocal.default)
#: Continuous, so that more precision changes no more than roundings: a quantizer would jump.
_OTHERS = (
    *CASTS, aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.mul.Tensor,
    aten.mul.Scalar, aten.neg.default, aten.sqrt.default, aten.square.default, aten.pow.Tensor_Scalar,
    aten.clamp.default, aten.clamp_min.default, aten.maximum.default, aten.max.other, aten.prod.default,
    aten.expand.default, aten.expand_as.default, aten.full.default, aten.lift_fresh_copy.default,
)  # fmt: skip


class Standardised:
    """A weight value of this kind, the operators that make it, and what it is made of."""

    def __init__(self, value: Node, inner: list[Node], held: list[Node]) -> None:
        self.value, self.inner, self.held = value, inner, held

    @property
    def _kind(self) -> str:
        is_standardised = any(is_call(node, *_STATISTICS) for node in self.inner)
        return "weight_standardization" if is_standardised else "l2_norm"

    def site(self) -> Site:
        """What a report says of it; eps is not one number, wherever it may stand."""
        fake = tensor_of(self.value)
        assert fake is not None
        dims, dtype = tuple(range(1 - rank_of(self.value), 0)), fake.dtype
        spec = NormSpec(self._kind, dims, None, dtype, dtype, dtype, dtype)
        spelling = ", ".join(str(n.target).removeprefix("aten.").split(".")[0] for n in self.inner)
        return Site.of(spec, module_path(self.value), source_line(self.value), spelling)


def standardised(reader: Node, weights: WeightValues) -> Standardised | None:
    """The weight of an operator, where it is divided by a statistic of its own and not yet folded."""
    value = bind(reader)["weight"] if is_call(reader, *_READERS) else None
    if not isinstance(value, Node) or value not in weights or FOLD in value.meta:
        return None
    inner, held = _made_by(value)
    needed = ((*_STATISTICS, *_LENGTHS), _DIVIDING)
    has_all = all(any(is_call(node, *targets) for node in inner) for targets in needed)
    is_known = has_all and all(_is_continuous(node) and FOLD not in node.meta for node in inner)
    return Standardised(value, inner, held) if is_known else None


def _is_continuous(node: Node) -> bool:
    known = is_call(node, *_STATISTICS, *_LENGTHS, *_DIVIDING, *_OTHERS)
    return known or is_move(node) or node.target is operator.getitem


def _made_by(value: Node) -> tuple[list[Node], list[Node]]:
    """Operators and inputs that a weight value is made of."""
    ordered = sorted(ancestors(value))
    return [n for n in ordered if n.op == "call_function"], [n for n in ordered if n.op != "call_function"]
