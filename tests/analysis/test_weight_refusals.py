"""Which tensors may have a folded copy."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

from normfuse.analysis.weights import WeightValues
from normfuse.ir import Input, Program, Role
from normfuse.ir.effects import Effects


class Sub(torch.Tensor):
    """A tensor with a class of its own."""


def inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3)


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


REFUSED = {
    "subclass": (lambda: torch.ones(3).as_subclass(Sub), "weight_subclass"),
    "quantized": (quantized, "weight_subclass"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "weight_subclass"),
    "float8": (lambda: torch.ones(3).to(torch.float8_e4m3fn), "weight_dtype"),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), "weight_dtype"),
    "meta": (lambda: torch.ones(3, device="meta"), "weight_dtype"),
    "inference": (inference, "weight_untracked"),
}


def refusal(value: torch.Tensor):
    graph = Graph()
    node = graph.placeholder("weight")
    graph.output(node)
    program = Program(GraphModule({}, graph), [Input(node, Role.PARAMETER, "weight", value)])
    return WeightValues(program, Effects(graph)).refusal(node)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_tensor_is_refused(name: str) -> None:
    make, code = REFUSED[name]
    found = refusal(make())
    assert found is not None
    assert found.code == code
    assert "weight" in found.message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_plain_tensors_are_not(dtype: torch.dtype) -> None:
    assert refusal(torch.ones(3, dtype=dtype)) is None
    if dtype.is_floating_point:
        assert refusal(torch.nn.Parameter(torch.ones(3, dtype=dtype))) is None


def held(value: torch.Tensor, **facts: bool) -> tuple[WeightValues, Node]:
    """A program of one weight that nothing reads."""
    graph = Graph()
    node = graph.placeholder("weight")
    node.meta["val"] = value
    graph.output(())
    program = Program(GraphModule({}, graph), [Input(node, Role.PARAMETER, "weight", value)], **facts)
    return WeightValues(program, Effects(graph)), node


@pytest.mark.parametrize(("value", "shared"), [(torch.eye(3), False), (torch.eye(3).to_sparse(), True)])
def test_who_reads_memory_that_cannot_be_named_is_not_known(value: torch.Tensor, shared: bool) -> None:
    weights, node = held(value)
    assert weights.is_shared(node) is shared


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_maps_train_where_gradients_are_recorded_and_flow(records: bool, trains: bool) -> None:
    weights, node = held(torch.ones(3, requires_grad=trains), grad_enabled=records)
    assert weights.train([SimpleNamespace(sources=(node,))]) is (records and trains)  # type: ignore[list-item]


#: What is moved to the CPU at every call: its shape, and whether it is a tensor of the model.
MOVED: dict[str, tuple[tuple[int, ...], bool, bool]] = {
    "a weight": ((3,), True, True),
    "a number": ((), True, False),
    "what the graph makes itself": ((3,), False, False),
}


@pytest.mark.parametrize("name", MOVED)
def test_weights_that_every_call_moves_stay_where_they_are(name: str) -> None:
    """Fake tensors stand for another device here."""
    shape, stored, refused = MOVED[name]
    graph = Graph()
    with FakeTensorMode():
        there, here = torch.empty(shape, device="cuda"), torch.empty(shape)
    if stored:
        leaf = graph.placeholder("weight")
    else:
        leaf = graph.call_function(torch.ops.aten.ones.default, (shape,), {"device": "cuda"})
    leaf.meta["val"] = there
    node = graph.call_function(torch.ops.aten.to.device, (leaf, "cpu", torch.float32))
    node.meta["val"] = here
    graph.output(node)
    inputs = [Input(leaf, Role.PARAMETER, "weight", torch.ones(shape))] if stored else []
    found = WeightValues(Program(GraphModule({}, graph), inputs), Effects(graph)).refusal(node)
    assert (found.code if found is not None else None) == ("weight_device" if refused else None)
