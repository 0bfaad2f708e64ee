"""Where a number per channel goes that a projection adds to its result, through attention.

    softmax(q' (k + s)) = softmax(q' k)        W softmax(a) (v + s) + c = W softmax(a) v + (c + W s)

All scores of a query grow by the same number, ``q' s``, of which a softmax over the keys takes no notice; and
the weights of a query sum to one. Nothing is changed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from normfuse.analysis.contraction import CONTRACTIONS, Contraction, Factor, Reading, reading
from normfuse.analysis.places import every_channel, moved, varying
from normfuse.analysis.ranges import SPLITS
from normfuse.analysis.scores import Scores, sums_to_one
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import CASTS, aten, bind, is_call, known_as
from normfuse.ir.location import described
from normfuse.ir.readers import operands_of, value_readers
from normfuse.ir.sizes import has_entries, rank_of, static_size, tensors_of, widened_by
from normfuse.report import Refusal
from normfuse.torch_compat import outside_tracing

__all__ = ["Attended", "Projected", "attended"]

_ATTENTION = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class Projected:
    """``node`` contracts what attention gives with a weight; channel ``i`` of it is that of ``places[i]``."""

    node: Node
    reading: Reading
    places: tuple[int, ...]


@dataclass
class Attended:
    """Where the number goes: operators that take no notice of it, and weights that read it.

    ``meets`` says whether there was any attention on its way.
    """

    unnoticed: list[Node] = field(default_factory=list)
    reads: list[Projected] = field(default_factory=list)
    meets: bool = False


def attended(projection: Node, weights: WeightValues) -> tuple[Attended, Refusal | None]:
    """All readers of what a projection adds to, up to the first that would notice."""
    found = Attended()
    width = static_size(projection, -1)
    if width is None:
        return found, _notices(projection, projection)
    return found, _follow(projection, every_channel(rank_of(projection), width), weights, found)


def _follow(value: Node, places: Tensor, weights: WeightValues, found: Attended) -> Refusal | None:
    refusal = _refuse_value(value)
    for user in value_readers(value):
        refusal = refusal or _into(user, value, places, weights, found)
    return refusal


def _refuse_value(value: Node) -> Refusal | None:
    if any(tensor.dtype == torch.float16 for tensor in tensors_of(value)):
        message = f"without what is added, {described(value)} may be too large for float16"
        return Refusal("overflow", message, value.name, "keep the values in a wider dtype")
    return None


def _into(user: Node, value: Node, places: Tensor, weights: WeightValues, found: Attended) -> Refusal | None:
    if is_call(user, *SPLITS, aten.unbind.int):
        parts = [(part, moved(places, value, part)) for part in user.users]
        refusals = (_onward(part, behind, value, weights, found) for part, behind in parts)
        return next((refusal for refusal in refusals if refusal is not None), None)
    if is_call(user, _ATTENTION):
        return _into_attention(user, value, places, weights, found)
    if known_as(user) in CONTRACTIONS:
        return _into_product(user, value, places, weights, found)
    if is_call(user, *CASTS):
        return _onward(user, None if widened_by(user) < 0 else places, value, weights, found)
    return _onward(user, moved(places, value, user), value, weights, found)


def _onward(
    user: Node, places: Tensor | None, value: Node, weights: WeightValues, found: Attended
) -> Refusal | None:
    return _notices(user, value) if places is None else _follow(user, places, weights, found)


def _into_attention(
    user: Node, value: Node, places: Tensor, weights: WeightValues, found: Attended
) -> Refusal | None:
    bound = bind(user)
    roles = [name for name in ("key", "value") if bound[name] is value]
    found.meets |= bool(roles)
    if sum(operand is value for operand in operands_of(user)) != len(roles) or places.shape[-2] != 1:
        return _notices(user, value)
    if "key" in roles:
        found.unnoticed.append(user)
    if "value" not in roles:
        return None
    if bound["attn_mask"] is not None or bound["dropout_p"] != 0 or not has_entries(bound["key"], -2):
        return _sums_otherwise(user)
    return _onward(user, _of_all_heads(user, places), value, weights, found)


def _of_all_heads(user: Node, places: Tensor) -> Tensor | None:
    """The places in the result: heads of queries may share one of values."""
    with outside_tracing():
        places = places.reshape([1] * (rank_of(user) - places.dim()) + list(places.shape))
        if not bind(user)["enable_gqa"]:
            return places
        heads = static_size(user, -3)
        return None if heads is None else places.repeat_interleave(heads // places.shape[-3], -3)


def _into_product(
    user: Node, value: Node, places: Tensor, weights: WeightValues, found: Attended
) -> Refusal | None:
    product = CONTRACTIONS[known_as(user)](user, bind(user))
    own = [] if product is None else [factor for factor in product.factors if factor.node is value]
    if product is None or len(own) != 1 or len(product.factors) != 2 or product.windows:
        return _notices(user, value)
    (other,) = (factor for factor in product.factors if factor is not own[0])
    if other.node in weights:
        return _into_weight(user, value, places, found)
    found.meets = True
    if _averages(product, own[0], other, places):
        return _onward(user, _behind(product, own[0], places), value, weights, found)
    same = _axes_of_one_number(product, own[0], other, places)
    if not Scores(user, same).are_normalized():
        return _notices(user, value)
    found.unnoticed.append(user)
    return None


def _into_weight(user: Node, value: Node, places: Tensor, found: Attended) -> Refusal | None:
    axes = varying(places)
    how = reading(user, value, axes[0]) if len(axes) == 1 else None
    if how is None or not found.meets:
        return _notices(user, value)
    with outside_tracing():
        found.reads.append(Projected(user, how, tuple(places.flatten().tolist())))
    return None


def _averages(product: Contraction, own: Factor, other: Factor, places: Tensor) -> bool:
    """Whether a product sums over one axis, along which the other factor sums to one, and does no more."""
    summed = [letter for letter in own.letters if letter not in product.out]
    if len(summed) != 1 or summed[0] not in other.letters or product.addend is not None:
        return False
    if set(own.letters + other.letters) - set(product.out) - {*summed}:
        return False
    at = own.letters.index(summed[0])
    return places.shape[at] == 1 and sums_to_one(other.node, other.letters.index(summed[0]))


def _behind(product: Contraction, own: Factor, places: Tensor) -> Tensor:
    kept = [letter for letter in product.out if letter in own.letters]
    rest = [letter for letter in own.letters if letter not in kept]
    with outside_tracing():
        turned = places.permute([own.letters.index(letter) for letter in (*kept, *rest)])
        sizes = iter(turned.shape)
        return turned.reshape([next(sizes) if letter in kept else 1 for letter in product.out])


def _axes_of_one_number(product: Contraction, own: Factor, other: Factor, places: Tensor) -> frozenset[int]:
    """The axes of the result, from the end, along which the number that a product gains is the same."""
    differ = {own.letters[axis] for axis in varying(places)} | set(other.letters)
    rank = len(product.out)
    return frozenset(i - rank for i, letter in enumerate(product.out) if letter not in differ)


def _notices(user: Node, value: Node) -> Refusal:
    if user.op == "output":
        return Refusal("raw_reader", f"{described(value)} is returned, as it is", value.name)
    message = f"{described(user)} reads {described(value)}, and takes notice of what is added to it"
    return Refusal("raw_reader", message, user.name)


def _sums_otherwise(user: Node) -> Refusal:
    return Refusal(
        "masked_rows",
        f"{described(user)} may hide all keys from a query, or drop some: its weights need not sum to one",
        user.name,
        "leave the mask out where it hides nothing, or say is_causal=True",
    )
