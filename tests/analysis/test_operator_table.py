"""Every row of the operator table against the operator itself: random maps before and after the call."""

from __future__ import annotations

import operator
from types import FunctionType

import pytest
import torch
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map_only

from normfuse.analysis.channel_map import Trait
from normfuse.analysis.flow import Blocks, Carries, Scales, Shift, Vanishes
from normfuse.analysis.operator_table import ROWS, flow
from normfuse.ir.calls import bind
from normfuse.ir.sizes import rank_of
from tests.analysis.table_cases import ALL_TARGETS, CASES, CUBE, NEVER, SQUARE, N, case, index, real

aten = torch.ops.aten


def traced(call):
    """The call as a node, the tensors behind its placeholders, and a way to run it on others."""
    graph, tensors = Graph(), {}

    def placeholder(tensor):
        node = next((n for n, t in tensors.items() if t is tensor), None)
        if node is None:
            node = graph.placeholder(f"x{len(tensors)}")
            node.meta["val"], tensors[node] = tensor, tensor
        return node

    args, kwargs = tree_map_only(torch.Tensor, placeholder, (call.args, call.kwargs))
    node = graph.call_function(call.target, args, kwargs)
    node.meta["val"] = call.target(*call.args, **call.kwargs)
    if call.part is not None:
        parts, node = node, graph.call_function(operator.getitem, (node, call.part))
        node.meta["val"] = parts.meta["val"][call.part]
    return node, tensors


def evaluate(node, values):
    """The value of a node when the given nodes have these values."""
    if node in values:
        return values[node]
    args, kwargs = tree_map_only(Node, lambda n: evaluate(n, values), (node.args, node.kwargs))
    return node.target(*args, **kwargs)


def along(matrix, value, axis):
    """``matrix`` applied along one axis, to a tensor or to every tensor of a list."""
    if isinstance(value, (list, tuple)):
        return [along(matrix, v, axis) for v in value]
    matrix = matrix.to(value.dtype)
    return torch.tensordot(matrix, value.movedim(axis, 0), dims=1).movedim(0, axis)


def in_runs(matrix, value, axis, groups):
    """A map of all channels, applied to runs of them along axis 0."""
    if groups == 1:
        return along(matrix, value, axis)
    width = value.shape[axis]
    parts = value.chunk(groups, 0)
    blocks = [matrix[i * width : (i + 1) * width, i * width : (i + 1) * width] for i in range(groups)]
    return torch.cat([along(m, p, axis) for m, p in zip(blocks, parts, strict=True)], 0)


def size(node, axis):
    value = node.meta["val"]
    return (value[0] if isinstance(value, (list, tuple)) else value).shape[axis]


def check(call):
    """Compare ``M op(a, b)`` with ``op(M a, M b)`` on every axis; returns the axes that are not blocked."""
    node, tensors = traced(call)
    passed = set()
    for axis in range(rank_of(node)):
        found = flow(node, axis)
        if isinstance(found, Blocks):
            assert found.refusal.code
            assert found.refusal.message
            continue
        passed.add(axis)
        CHECKS[type(found)](node, tensors, axis, found)
    return passed


def check_carries(node, tensors, axis, found):
    width = size(node, axis)
    assert found.operands
    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    if found.needs is Trait.DIAGONAL:
        matrix = torch.diag(torch.diagonal(matrix))
    mapped = dict(tensors)
    for operand, inner in found.operands:
        groups = found.groups if operand is found.operands[0][0] else 1
        assert size(operand, inner) * groups == width
        mapped[operand] = in_runs(matrix, evaluate(operand, tensors), inner, groups)
    expected = along(matrix, evaluate(node, tensors), axis)
    single = any(t.dtype == torch.float32 for t in tensors.values())
    tolerance = 1e-5 if single else 1e-11
    torch.testing.assert_close(evaluate(node, mapped), expected, rtol=tolerance, atol=tolerance)
    check_shift(node, tensors, axis, found, tolerance)


def check_shift(node, tensors, axis, found, tolerance):
    """``op(a) + t`` against ``op`` of shifted operands, in every way that the row allows."""
    shift = torch.linspace(1.0, 3.0, size(node, axis), dtype=torch.float64)
    expected = shifted(evaluate(node, tensors), shift, axis)
    operands = [o for o, _ in found.operands]
    ways = {Shift.NOWHERE: [], Shift.EVERYWHERE: [operands], Shift.ONCE: [[a] for a in found.adders]}
    for chosen in ways[found.shift]:
        mapped = dict(tensors)
        for operand, inner in found.operands:
            if operand in chosen:
                mapped[operand] = shifted(evaluate(operand, tensors), shift, inner)
        torch.testing.assert_close(evaluate(node, mapped), expected, rtol=tolerance, atol=tolerance)
    if found.bias:
        given = bind(node) | {found.bias: shift.to(evaluate(node, tensors).dtype)}
        args, kwargs = tree_map_only(Node, lambda n: tensors[n], ((), given))
        torch.testing.assert_close(node.target(*args, **kwargs), expected, rtol=tolerance, atol=tolerance)
    if found.factor is not None:
        (operand,) = operands
        made = along(
            torch.eye(size(node, axis), dtype=torch.float64) * found.factor, evaluate(operand, tensors), axis
        )
        torch.testing.assert_close(made, evaluate(node, tensors), rtol=tolerance, atol=tolerance)


def shifted(value, shift, axis):
    if isinstance(value, (list, tuple)):
        return [shifted(v, shift, axis) for v in value]
    return value + shift.to(value.dtype).reshape([-1] + [1] * (value.dim() - 1 - axis))


def check_scales(node, tensors, axis, found):
    factor = tensors[found.scale].reshape(-1)
    assert len(factor) == size(node, axis) == size(found.operand, found.axis)
    expected = along(torch.diag(factor), tensors[found.operand], found.axis)
    torch.testing.assert_close(evaluate(node, tensors), expected.expand(node.meta["val"].shape))


def check_vanishes(node, tensors, axis, found):
    assert not evaluate(node, tensors).any()


CHECKS = {Carries: check_carries, Scales: check_scales, Vanishes: check_vanishes}


@pytest.mark.parametrize("call", CASES, ids=str)
def test_maps_pass_exactly_where_the_table_says(call):
    assert check(call) == call.axes


def test_every_row_has_a_case_and_every_row_lets_something_pass():
    rows = {target for target in ROWS if not isinstance(target, str)}  # names: tests/models/test_experts.py
    assert rows == ALL_TARGETS
    positive = {c.target for c in CASES if c.axes}
    assert rows - positive == {operator.getitem}


@pytest.mark.parametrize("target", NEVER, ids=str)
def test_operator_has_no_row(target):
    assert target not in ROWS


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (case(aten.relu.default, real(N, N)), "nonlinear_writer"),
        (case(aten.softmax.int, real(N, N), -1), "nonlinear_writer"),
        (case(aten.cumsum.default, real(N, N), -1), "nonlinear_writer"),
        (case(aten.amax.default, real(N, N), [-1], True), "nonlinear_writer"),
        (case(aten.mul.Tensor, real(N, N), real(N, N) * 2), "channel_gate"),
        (case(aten.mul.Tensor, real(N, N), index(N, N)), "channel_gate"),
        (case(aten.mul.Tensor, index(N, N), 0.5), "nonlinear_writer"),
        (case(aten.add.Tensor, real(N, N), index(N)), "nonlinear_writer"),
        (case(aten.add.Tensor, real(N, N), real(N, 1)), "constant_added"),
        (case(aten.cat.default, [real(N, N), real(N, N) * 2], 1), "channel_mix"),
        (case(aten.dropout.default, real(N, N), 0.1, True), "dropout"),
        (case(aten.view.default, real(N, N), [N // 2, 2 * N]), "channel_mix"),
        (case(aten.mean.dim, real(N, N), [-1], True), "channel_mix"),
    ],
    ids=str,
)
def test_the_last_axis_is_blocked_with_a_reason(call, code):
    node, _ = traced(call)
    found = flow(node, rank_of(node) - 1)
    assert isinstance(found, Blocks)
    assert found.refusal.code == code


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (case(aten.relu.default, real(N, N)), lambda n, b, a: Carries(((n.args[0], a),))),
        (case(aten.mm.default, real(N, N), real(N, N) * 2), lambda n, b, a: Carries(((n.args[a], 1 - a),))),
        (case(aten.add.Tensor, real(N, N), real(N, N) * 2), lambda n, b, a: Carries(((n.args[0], a),))),
        (
            case(aten.sum.dim_IntList, CUBE, [0]),
            lambda n, b, a: Carries(((n.args[0], a + 1),), shift=Shift.EVERYWHERE),
        ),
        (
            case(aten.add.Tensor, SQUARE, SQUARE * 2, alpha=2),
            lambda n, b, a: Carries(((n.args[0], a), (n.args[1], a)), shift=Shift.ONCE, adders=(n.args[1],)),
        ),
        (case(aten.neg.default, SQUARE), lambda n, b, a: Carries(((n.args[0], a),), factor=1.0)),
        (
            case(aten.conv1d.default, real(N, N, N), real(N, 1, 1), real(N), [1], [0], [1], N),
            lambda n, b, a: Carries(((n.args[1], 0),)),
        ),
        (case(aten.mul.Tensor, real(N, N), real(N)), lambda n, b, a: Scales(n.args[0], 1 - a, n.args[1])),
        (case(aten.ones_like.default, real(N, N)), lambda n, b, a: Vanishes()),
        (case(aten.mm.default, *[real(N, N)] * 2), lambda n, b, a: Carries(((n.args[1], 1), (n.args[0], 1)))),
    ],
    ids=lambda value: "" if isinstance(value, FunctionType) else str(value),
)
def test_a_wrong_row_is_caught(call, wrong, monkeypatch):
    monkeypatch.setitem(ROWS, call.target, wrong)
    with pytest.raises(AssertionError):
        check(call)


def test_a_row_without_a_case_is_caught(monkeypatch):
    monkeypatch.setitem(ROWS, aten.relu.default, ROWS[aten.neg.default])
    with pytest.raises(AssertionError):
        test_every_row_has_a_case_and_every_row_lets_something_pass()


def test_rows_are_written_for_the_operators_that_a_capture_shows():
    def model(x, w, table, i):
        y = torch.nn.functional.linear(x, w) + table[i]
        y = torch.cat([part.contiguous() for part in y.chunk(2, 0)], 0).flatten(0, 0).mT.mT
        return torch.einsum("nd,hd->nh", torch.nn.functional.dropout(y, 0.5, False).to(torch.float64), w)

    gm = make_fx(model, pre_dispatch=True)(real(N, N), real(N, N), real(N, N), index(N))
    targets = {n.target for n in gm.graph.nodes if n.op == "call_function"}
    assert targets <= ALL_TARGETS, targets - ALL_TARGETS


@pytest.mark.parametrize("target", [aten.div.Tensor, aten.div.Scalar])
def test_division_by_zero_has_no_factor(target):
    node, _ = traced(case(target, CUBE, 0.0, axes=()))
    assert flow(node, 2).factor is None


@pytest.mark.parametrize("call", [c for c in CASES if c.axes], ids=str)
def test_what_nothing_is_known_about_is_blocked(call):
    node, _ = traced(call)
    del node.meta["val"]
    assert isinstance(flow(node, min(call.axes)), Blocks)


def test_a_value_that_is_read_on_two_axes_is_blocked(monkeypatch):
    node, _ = traced(case(aten.add.Tensor, SQUARE, SQUARE))
    (value,) = node.all_input_nodes
    monkeypatch.setitem(ROWS, node.target, lambda *_: Carries(((value, 0), (value, 1))))
    assert flow(node, 1).refusal.code == "nonlinear_writer"
