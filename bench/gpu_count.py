"""What Inductor would launch on a GPU for a function: kernels, library calls, and the bytes that each moves.

Bytes are those of the index expressions of each kernel, every element that it reads or writes counted once.
"""

from __future__ import annotations

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
from torch.utils._pytree import tree_leaves

from bench.gpu_bytes import moved

__all__ = ["BANDWIDTH", "LAUNCH", "Count", "count"]


#: Assumed for an H100: bytes a second of the memory, and seconds from one kernel to the next in a graph.
BANDWIDTH, LAUNCH = 3.0e12, 1.3e-6


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

    @property
    def seconds(self) -> float:
        """An estimate: as if nothing but the memory and the launches took time."""
        return self.moved / BANDWIDTH + self.launches * LAUNCH

    def plus(self, other: Count) -> Count:
        """Both, one after the other."""
        return Count(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def minus(self, other: Count) -> Count:
        """What a larger function has beyond a smaller one."""
        return Count(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


class _DoneError(Exception):
    """Inductor has written everything; what would follow needs the device."""


def count(function: Callable[..., Any], values: Sequence[torch.Tensor], is_training: bool) -> Count:
    """``function`` of tensors like these; in training, and the gradients by those that ask for theirs.

    The tensors stand on the CPU, and what is counted is the code for a GPU.
    """
    return reduce(Count.plus, map(_counted, _graphs(function, values, is_training)))


def _graphs(
    function: Callable[..., Any], values: Sequence[torch.Tensor], is_training: bool
) -> list[GraphModule]:
    """Forward, and backward in training.

    Traced on the CPU, since a PyTorch without CUDA has no gradients on it, and moved afterwards.
    """
    with FakeTensorMode():
        inputs = [_alike(one, "cpu").requires_grad_(is_training and one.requires_grad) for one in values]
        results: list[Any] = []

        def run(*given: torch.Tensor) -> tuple[Any, ...]:
            results[:] = tree_leaves(function(*given))
            return tuple(results)

        whole: Any = aot_export_joint_simple(
            run, tuple(inputs), trace_joint=is_training, decompositions=select_decomp_table()
        )
        graphs: list[GraphModule] = [*_parts(whole, inputs, len(results))] if is_training else [whole]
    for graph in graphs:
        for node in graph.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        graph.recompile()
    return graphs


def _alike(value: torch.Tensor, device: str) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def _parts(
    joint: GraphModule, inputs: Sequence[torch.Tensor], results: int
) -> tuple[GraphModule, GraphModule]:
    joint.graph.set_codegen(CodeGen())
    joint.recompile()
    found: tuple[GraphModule, GraphModule] = min_cut_rematerialization_partition(
        joint, inputs, num_fwd_outputs=results
    )
    return found


def _counted(graph: GraphModule) -> Count:
    mode, found = FakeTensorMode(), []
    places = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    with mode:
        inputs = [_alike(value, "cuda") for value in places]

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
    found = Count(0, 0, 0, 0)
    for node in graph.scheduler.nodes:
        kind, bytes_moved = type(node.node).__name__, 0
        if type(node).__name__ != "NopKernelSchedulerNode":
            bytes_moved = moved(graph, node)
        if kind == "MultiOutput":  # a part of the results of a call that counts by itself
            found = found.plus(Count(0, 0, 0, bytes_moved))
        elif node.is_extern() and kind != "UserDefinedTritonKernel":
            found = found.plus(Count(0, 1, 0, bytes_moved))
        elif bytes_moved:
            found = found.plus(Count(1, 0, bytes_moved, 0))
    return found
