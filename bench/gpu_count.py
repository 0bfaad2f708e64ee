"""What Inductor would launch on a GPU for a function: kernels, library calls, and the bytes that each moves.

Bytes are Inductor's own figures: from the index expressions of each kernel, every element of a tensor that
a kernel reads or writes counted once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import reduce
from typing import Any
from unittest import mock

import torch
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.graph import CodeGen

__all__ = ["Count", "count"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Count:
    """Attributes:
    kernels: Triton kernels that Inductor wrote, and ours.
    calls: products and attention, which libraries do.
    kernel_bytes, call_bytes: what each of the two kinds reads and writes.
    """

    kernels: int
    calls: int
    kernel_bytes: int
    call_bytes: int

    @property
    def launches(self) -> int:
        return self.kernels + self.calls

    @property
    def moved(self) -> int:
        return self.kernel_bytes + self.call_bytes

    def plus(self, other: Count) -> Count:
        """Both, one after the other."""
        return Count(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class _DoneError(Exception):
    """Inductor has written everything; what would follow needs the device."""


def count(function: Callable[..., Any], shapes: Sequence[Shape], is_training: bool) -> Count:
    """``function`` takes bfloat16 tensors of these shapes; in training, of its gradients too."""
    return reduce(Count.plus, (_counted(graph) for graph in _graphs(function, shapes, is_training)))


def _graphs(function: Callable[..., Any], shapes: Sequence[Shape], is_training: bool) -> list[GraphModule]:
    """Forward, and backward in training.

    Traced on the CPU, since a PyTorch without CUDA has no gradients on it, and moved afterwards.
    """
    with FakeTensorMode():
        inputs = [torch.empty(s, dtype=torch.bfloat16, requires_grad=is_training) for s in shapes]
        whole: Any = aot_export_joint_simple(
            lambda *values: (function(*values),),
            tuple(inputs),
            trace_joint=is_training,
            decompositions=select_decomp_table(),
        )
        graphs: list[GraphModule] = [*_parts(whole, inputs)] if is_training else [whole]
    for graph in graphs:
        for node in graph.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        graph.recompile()
    return graphs


def _parts(joint: GraphModule, inputs: Sequence[torch.Tensor]) -> tuple[GraphModule, GraphModule]:
    joint.graph.set_codegen(CodeGen())
    joint.recompile()
    found: tuple[GraphModule, GraphModule] = min_cut_rematerialization_partition(
        joint, inputs, num_fwd_outputs=1
    )
    return found


def _counted(graph: GraphModule) -> Count:
    mode, found = FakeTensorMode(), []
    places = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    with mode:
        inputs = [torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device="cuda") for v in places]

    def keep(lowering: GraphLowering) -> None:
        lowering.codegen()
        found.append(_summed(lowering))
        raise _DoneError

    context = torch._guards.tracing(torch._guards.TracingContext(mode))
    settings = config.patch(fx_graph_cache=False, compile_threads=1)
    with torch.no_grad(), context, settings, mock.patch.object(GraphLowering, "compile_to_module", keep):
        try:
            compile_fx_inner(graph, inputs)
        except Exception:
            if not found:
                raise
    return found[-1]


def _summed(graph: GraphLowering) -> Count:
    ours, theirs = [], []
    for node in graph.scheduler.nodes:
        kind = type(node.node).__name__
        if type(node).__name__ == "NopKernelSchedulerNode" or kind == "MultiOutput":
            continue
        if kind == "UserDefinedTritonKernel":
            ours.append(_arguments(graph, node))
        elif node.is_extern():
            theirs.append(int(node.get_read_write_buffers_sizes()))
        else:
            ours.append(int(node.get_read_write_buffers_sizes()))
    return Count(len(ours), len(theirs), sum(ours), sum(theirs))


def _arguments(graph: GraphLowering, node: Any) -> int:
    """Each tensor once: Inductor counts what a kernel of somebody else writes as read too."""
    real = graph.scheduler.mutation_real_name
    names = {real.get(dep.name, dep.name) for dep in node.read_writes.reads}
    buffers = [graph.get_buffer(name) for name in names]
    return sum(math.prod(map(int, b.get_size())) * b.get_dtype().itemsize for b in buffers)
