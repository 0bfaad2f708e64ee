"""Run user code on copies of its inputs, and put its state back afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
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
    bindings = [(d, {k: v for k, v in d.items() if isinstance(v, torch.Tensor)}) for d in dictionaries]
    if parameters:
        bindings += [(m._parameters, _plain(m._parameters)) for m in modules]
    values = {id(t): (t, t.detach().clone(), _version(t)) for _, held in bindings for t in held.values()}
    try:
        yield {key: value for key, (_, value, _) in values.items()}
    finally:
        for dictionary, held in bindings:
            dictionary.update(held)
        for tensor, value, version in values.values():
            _restore(tensor, value, version)


def _plain(parameters: Mapping[str, nn.Parameter | None]) -> dict[str, torch.Tensor]:
    """Those that can be copied and compared."""
    return {n: p for n, p in parameters.items() if type(p) is nn.Parameter and p.layout == torch.strided}


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _restore(tensor: torch.Tensor, value: torch.Tensor, version: int | None) -> None:
    # Not by version counter: batch_norm updates running statistics without raising it.
    if torch.equal(tensor, value):
        return
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(value)
    if version is not None:
        torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))


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
