"""Run user code on copies of its inputs, and put its state back afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

__all__ = ["copied_inputs", "preserved_rng", "preserved_state"]


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore torch's random state (CPU, and CUDA where it is in use) on exit."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def preserved_state(program: object, parameters: bool = True) -> Iterator[dict[int, torch.Tensor]]:
    """Restore parameters, buffers and tensor attributes of a module (or a bound method's module) on exit.

    Values are put back into the tensors that held them and their version counters are put back too, so that
    an observer cannot tell that the program ran. State that is not a tensor is not covered, and neither are
    parameters of other classes than PyTorch's own. Gives the values before, by the identity of their tensor.
    """
    module = program if isinstance(program, nn.Module) else getattr(program, "__self__", None)
    modules = list(module.modules()) if isinstance(module, nn.Module) else []
    dictionaries: list[dict[str, Any]] = [d for m in modules for d in (m._buffers, vars(m))]
    if parameters:
        dictionaries += [m._parameters for m in modules]
    bindings = [(d, {k: v for k, v in d.items() if isinstance(v, torch.Tensor)}) for d in dictionaries]
    kept = {id(t): _Kept(t) for _, held in bindings for t in held.values() if _can_be_kept(t)}
    try:
        yield {key: one.value for key, one in kept.items()}
    finally:
        for dictionary, held in bindings:
            dictionary.update(held)
        for one in kept.values():
            one.restore()


def _can_be_kept(tensor: torch.Tensor) -> bool:
    """Whether a tensor can be copied and compared; parameters of classes of their own are left alone."""
    is_own = isinstance(tensor, nn.Parameter) and type(tensor) is not nn.Parameter
    is_empty = is_lazy(tensor) or tensor.device.type == "meta"
    if is_own or is_empty or tensor.layout != torch.strided:
        return False
    try:
        corner = tensor.detach()[(slice(0, 1),) * tensor.dim()]
        torch.equal(corner, corner.clone())
    except (NotImplementedError, RuntimeError):
        return False
    return True


class _Kept:
    """A tensor as it was: its entries, where they lie, and its version."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.value = tensor, tensor.detach().clone()
        self._place, self._trains = tensor.detach(), tensor.requires_grad
        self._version = None if tensor.is_inference() else tensor._version

    def restore(self) -> None:
        # Not by version counter: batch_norm updates running statistics without raising it.
        with torch.inference_mode(self.tensor.is_inference()), torch.no_grad():
            moved = not self._lies_there()
            if moved:
                self.tensor.data = self._place
            changed = not torch.equal(self.tensor, self.value)
            if changed:
                self.tensor.copy_(self.value)
        if self.tensor.is_leaf and self.tensor.requires_grad != self._trains:
            self.tensor.requires_grad_(self._trains)
        if (moved or changed) and self._version is not None:
            torch._C._autograd._unsafe_set_version_counter((self.tensor,), (self._version,))

    def _lies_there(self) -> bool:
        a, b = self.tensor, self._place
        alike = (a.dtype, a.device, a.shape, a.stride()) == (b.dtype, b.device, b.shape, b.stride())
        return alike and a.data_ptr() == b.data_ptr()


def copied_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copies of example inputs that keep aliasing between arguments; opaque objects are deep-copied."""
    memo: dict[int, Any] = {}

    def duplicate(leaf: Any) -> Any:
        if id(leaf) not in memo:
            memo[id(leaf)] = _duplicate(leaf)
        return memo[id(leaf)]

    copied: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(duplicate, (args, kwargs))
    return copied


def _duplicate(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    if isinstance(leaf, nn.Module) or callable(leaf):
        return leaf
    try:
        return copy.deepcopy(leaf)
    except Exception:  # an object that cannot be copied is the caller's to keep clean
        return leaf
