"""The model and the inputs that a measurement calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfuse.benchmark.settings import Settings
from normfuse.errors import InputError, cause
from normfuse.sources import Source, load_source

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """A model in the mode, dtype and place that the settings name, with inputs of their batch size."""

    name: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    training: bool

    @classmethod
    def of(cls, settings: Settings, given: Source | None = None) -> Subject:
        """Load the source of the settings, or take the one that is given.

        Raises:
            InputError: when there are no example inputs, or they have no common batch.
        """
        batch = settings.batch_size
        source = load_source(settings.source, batch_size=batch) if given is None else given
        source = source.with_dtype(settings.dtype)
        if not source.args and not source.kwargs:
            raise InputError(f"{source.name} holds no example inputs, so there is nothing to call it with")
        args, kwargs = _resized(source, batch)
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to(settings.device), (args, kwargs))
        model = source.module().to(settings.device)
        if not source.is_program:
            model.train(settings.training)
        return cls(source.name, model, args, kwargs, settings.training)

    def check(self) -> None:
        """Call the model once.

        Raises:
            InputError: when it does not take its inputs, as a program of fixed sizes does not take others.
        """
        try:
            with torch.no_grad():
                self.model(*self.args, **self.kwargs)
        except Exception as error:
            sizes = ", ".join(str(list(t.shape)) for t in _tensors((self.args, self.kwargs)))
            raise InputError(f"{self.name} does not take inputs of sizes {sizes}: {cause(error)}") from error

    def call(self, program: Callable[..., Any]) -> Callable[[], object]:
        """One call of ``program``, which is the model under some compiler."""
        if not self.training:
            return lambda: program(*self.args, **self.kwargs)

        def step() -> None:
            _scalar(program(*self.args, **self.kwargs)).backward()
            self.model.zero_grad(set_to_none=True)

        return step


def _scalar(output: Any) -> Tensor:
    """A loss that reads every floating output."""
    tensors = [t for t in _tensors(output) if t.requires_grad]
    if not tensors:
        raise InputError("no output depends on a parameter that is trained, so there is no training step")
    return torch.stack([t.float().square().mean() for t in tensors]).sum()


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]


def _resized(source: Source, batch: int | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs with ``batch`` examples, repeated as often as needed."""
    given = (tuple(source.args), dict(source.kwargs))
    first = next((t for t in _tensors(given) if t.dim()), None)
    if batch is None or first is None or first.shape[0] == batch:
        return given
    size = first.shape[0]
    if not size:
        raise InputError(f"the first input of {source.name} is empty, so it cannot be repeated")

    def repeat(value: Tensor) -> Tensor:
        if not value.dim() or value.shape[0] != size:
            return value
        times = -(-batch // size)
        return torch.cat([value] * times)[:batch].clone()

    args, kwargs = pytree.tree_map_only(Tensor, repeat, given)
    return args, kwargs
