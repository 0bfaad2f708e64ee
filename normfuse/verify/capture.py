"""The reference as an ATen graph that ``widen`` takes.

One path for every kind of reference: ``make_fx(pre_dispatch=True)`` on real tensors, with parameters, buffers
and the tensors among the arguments as graph inputs. ``torch.export`` would refuse models that branch on data
or keep Python state, and would still leave callables to capture otherwise; an exported program is retraced by
the same path. Real tensors let such code run, and the graph is only ever executed on the inputs it was traced
with, which makes values that tracing froze correct.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from normfuse.errors import CaptureError, InputError
from normfuse.files import is_program_file
from normfuse.verify.isolation import copied_inputs, preserved_rng, preserved_state
from normfuse.verify.leaves import tensor_leaves

__all__ = ["Capture", "capture_reference", "program_in", "runnable"]


@dataclass(frozen=True)
class Capture:
    """A program as a flat graph: ``graph(*inputs)`` returns the tensor leaves called ``paths``."""

    graph: GraphModule
    inputs: tuple[torch.Tensor, ...]  # the model's own tensors, detached: execute on copies
    parameters: dict[str, int]  # name -> position in ``inputs``
    paths: tuple[str, ...]


def program_in(given: Any) -> Any:
    """The exported program that a ``.pt2`` file or an object with ``.program`` holds; else what is given."""
    if is_program_file(given):
        from normfuse.pt2 import load_program

        return load_program(given)
    held = getattr(given, "program", None)
    return held if isinstance(held, ExportedProgram) else given


def runnable(program: Any) -> Callable[..., Any]:
    """What to call: the module of an exported program, or the callable itself."""
    found = program_in(program)
    if isinstance(found, ExportedProgram):
        module: nn.Module = found.module()
        return module
    if not callable(found):
        raise InputError(
            f"Cannot run a {type(program).__name__}; pass a module, a callable or an exported program."
        )
    return found  # type: ignore[no-any-return]


def capture_reference(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Capture:
    """Trace ``model(*args, **kwargs)`` on copies of the inputs, under the caller's grad mode.

    ``model`` is a module (compiled ones are traced uncompiled), a callable, an ``ExportedProgram`` or an
    object whose ``program`` is one, on any device. Tensors that a callable closes over become constants of
    the graph. Its state, its flags and torch's random state are as before afterwards.

    Raises ``CaptureError`` when tracing fails, ``InputError`` when the model returns no tensor.
    """
    program = runnable(model)
    program = getattr(program, "_orig_mod", program)
    state = _State.of(program)
    leaves, structure = pytree.tree_flatten((args, kwargs or {}))
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    trace = _Trace(program, state, leaves, positions, structure)
    copies = [_alias(t) for t in state.parameters.values()] + [
        t.detach().clone() for t in state.buffers.values()
    ]
    example = trace.example_inputs()
    with preserved_rng(), preserved_state(program), _uncompiled():
        graph = trace.run([*copies, *example])
    originals = [*state.parameters.values(), *state.buffers.values(), *(leaves[i] for i in positions)]
    parameters = {name: i for i, name in enumerate(state.parameters)}
    return Capture(graph, tuple(t.detach() for t in originals), parameters, tuple(trace.paths))


@dataclass(frozen=True)
class _State:
    parameters: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]

    @staticmethod
    def of(program: object) -> _State:
        if not isinstance(program, nn.Module):
            return _State({}, {})
        return _State(dict(program.named_parameters()), dict(program.named_buffers()))


class _Trace:
    """The flat function that is traced, and the paths of the leaves that it returned."""

    def __init__(
        self,
        program: Callable[..., Any],
        state: _State,
        leaves: list[Any],
        positions: list[int],
        structure: Any,
    ) -> None:
        self.program, self.names = program, [*state.parameters, *state.buffers]
        self.leaves, self.positions, self.structure = leaves, positions, structure
        self.paths: list[str] = []

    def example_inputs(self) -> list[torch.Tensor]:
        (copies,), _ = copied_inputs((self.leaves,), {})
        self.leaves = copies
        return [copies[i] for i in self.positions]

    def run(self, inputs: list[torch.Tensor]) -> GraphModule:
        try:
            graph = make_fx(self, pre_dispatch=True, _error_on_data_dependent_ops=False)(*inputs)
        except InputError:
            raise
        except Exception as error:
            name = type(self.program).__name__
            raise CaptureError(
                f"The reference ({name}) could not be traced for the oracle: {error}"
            ) from error
        return graph

    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        state = dict(zip(self.names, tensors, strict=False))
        for position, tensor in zip(self.positions, tensors[len(self.names) :], strict=True):
            self.leaves[position] = tensor
        args, kwargs = pytree.tree_unflatten(self.leaves, self.structure)
        if isinstance(self.program, nn.Module):
            output = functional_call(self.program, state, args, kwargs)
        else:
            output = self.program(*args, **kwargs)
        named = tensor_leaves(output)
        if not named:
            raise InputError("The reference returns no tensor, so there is nothing to verify.")
        self.paths[:] = named
        return list(named.values())


def _alias(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().requires_grad_(parameter.requires_grad)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Have Dynamo, if anything ever loaded it, run compiled submodules as plain Python while tracing."""
    loaded: Any = sys.modules.get("torch._dynamo")
    with loaded.config.patch(error_on_nested_fx_trace=False) if loaded else nullcontext():
        yield
