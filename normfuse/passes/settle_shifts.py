"""Add the shift of a norm behind the convolution that took it, where that is free or more precise.

    conv(x, W, b)  =>  conv(x, W) + b

On a CPU many float32 kernels start their sum from the bias, so that each of its K roundings is one of the
bias's size; a norm behind the convolution rounds once at that size. In a compiled graph the addition costs
nothing where it is fused into what reads the sum. Accelerators add the bias in the end anyway. Numerics
class: reassociated.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from normfuse.analysis.plan import Plan, Rebuilt, Redirected
from normfuse.folding import Premise
from normfuse.folding.recipe import FOLD
from normfuse.ir.calls import CASTS, aten, bind, is_call, readers, set_arguments
from normfuse.ir.emit import call
from normfuse.ir.sizes import rank_of, tensor_of
from normfuse.passes.work import Work

__all__ = ["SHIFT_MARKS", "note_shift", "note_shifts", "settle_shifts"]

#: Fused like those that PyTorch marks as pointwise, which it forgot here.
_ELEMENTWISE = (
    aten.hardswish.default, aten.hardswish_.default, aten.prelu.default, aten.dropout.default, *CASTS,
)  # fmt: skip

#: Metadata key of operators that took the shift of a norm: whether it is large beside what it is added to.
_SHIFT = "normfuse_shift"
_PREMISES = "normfuse_shift_premises"
SHIFT_MARKS = (_SHIFT, _PREMISES)
_CONVOLUTIONS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    aten.convolution.default,
)  # fmt: skip


def note_shift(node: Node, is_large: bool = False, premise: Premise | None = None) -> None:
    """Remember that an operator takes the shift of a norm; what is made of it inherits that.

    ``premise`` says that the shift is small, which the rewrite rests on where it ends up in a bias.
    """
    node.meta[_SHIFT] = is_large or node.meta.get(_SHIFT, False)
    if premise is not None:
        node.meta[_PREMISES] = (*node.meta.get(_PREMISES, ()), premise)


def note_shifts(plan: Plan, is_large: bool, premise: Premise | None) -> None:
    """The same for the operators that a plan makes anew."""
    if isinstance(plan, Redirected):
        note_shifts(plan.plan, is_large, premise)
    if isinstance(plan, Rebuilt):
        note_shift(plan.node, is_large, premise)
        for _, deeper in plan.operands:
            note_shifts(deeper, is_large, premise)


def settle_shifts(work: Work) -> None:
    """Give every shift that a convolution took its place: in the bias, or behind the sum."""
    graph = work.program.gm.graph
    compiles = not work.program.copies_tables
    premises: dict[int, Premise] = {}
    for node in [n for n in graph.nodes if _starts_from_shift(n)]:
        if work.precise or node.meta[_SHIFT] or (compiles and _is_fused(node)):
            made = _add_behind(graph, node)
            if node in work.written:
                work.written[made] = work.written.pop(node)
        else:
            work.shifts_in_biases += 1
            premises |= {id(premise): premise for premise in node.meta.get(_PREMISES, ())}
    work.program.premises.extend(premises.values())


def _starts_from_shift(node: Node) -> bool:
    if _SHIFT not in node.meta or not _adds_bias_first(node):
        return False
    bias = bind(node)["bias"]
    return isinstance(bias, Node) and FOLD in bias.meta


def _adds_bias_first(node: Node) -> bool:
    """Whether a sum of products starts from the bias."""
    fake = tensor_of(node)
    if fake is None or not is_call(node, *_CONVOLUTIONS):
        return False
    return fake.dtype == torch.float32 and fake.device.type == "cpu"


def _is_fused(node: Node) -> bool:
    """Whether all that reads a value works on it element by element."""
    return all(
        is_call(user, *_ELEMENTWISE) or torch.Tag.pointwise in getattr(user.target, "tags", ())
        for user in readers(node)
    )


def _add_behind(graph: Graph, node: Node) -> Node:
    bias, weight = bind(node)["bias"], bind(node)["weight"]
    with graph.inserting_after(bias):
        entries = call(graph, aten.reshape.default, bias, [-1] + [1] * (rank_of(weight) - 2))
    entries.meta[FOLD] = True
    users = list(node.users)
    set_arguments(node, {"bias": None})
    with graph.inserting_after(node):
        made = call(graph, aten.add.Tensor, node, entries)
    made.meta = node.meta | made.meta
    for user in users:
        user.replace_input_with(node, made)
    return made
