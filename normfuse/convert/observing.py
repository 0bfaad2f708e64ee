"""Statistics of what reaches layers while a model runs, taken batch by batch.

A layer in evaluation normalizes each batch by the statistics of that batch, as in training; in the end it
gets those of all tokens of all batches. Sums are kept in float64.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normfuse.errors import InputError
from normfuse.nn.moments import Tokens, sum_of_tokens

__all__ = ["Observed", "observing"]


@dataclass
class Observed:
    """Sums over the tokens that one layer has seen."""

    layer: Any
    count: int = 0
    total: Tensor | None = None
    squares: Tensor | None = None
    constant: list[int] = field(default_factory=list)

    def take(self, x: Tensor, pad_mask: Tensor | None) -> None:
        """Add a batch, and let the layer normalize it by its own statistics."""
        seen = self.layer.observed(x) if hasattr(self.layer, "observed") else x
        tokens = Tokens(seen, pad_mask)
        if tokens.is_empty is not None and bool(tokens.is_empty):
            return
        kept = tokens.keep(seen.double())
        total, squares, count = sum_of_tokens(kept), sum_of_tokens(kept.square()), int(tokens.count)
        self.layer.set_statistics(total / count, squares / count)
        self.count += count
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares

    def finish(self, name: str) -> None:
        """Give the layer the statistics of everything.

        Raises:
            InputError: when the layer never ran, or met what is not finite.
        """
        if self.total is None or self.squares is None:
            raise InputError(
                f"{name} saw no token of the data, so it has no statistics; leave it out with only="
            )
        if not (self.total.isfinite().all() and self.squares.isfinite().all()):
            raise InputError(f"{name} met values on the data that are not finite")
        mean, square = self.total / self.count, self.squares / self.count
        # A sum of n squares in float64 is off by n roundings at most.
        floor = self.count * torch.finfo(torch.float64).eps * square
        self.constant = (square - mean.square() <= floor).nonzero().flatten().tolist()
        self.layer.set_statistics(mean, square)


@contextmanager
def observing(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Observed]]:
    """Watch layers while the block runs a model."""
    found = {name: Observed(layer) for name, layer in layers.items()}
    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(_hook(found[name]), with_kwargs=True)
            stack.callback(handle.remove)
        yield found


def _hook(observed: Observed) -> Any:
    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(layer.forward).parameters)
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        x, mask = named.get(names[0]), named.get("pad_mask")
        if isinstance(x, Tensor) and _fits(mask, x):
            observed.take(x, mask)

    return before


def _fits(mask: Any, x: Tensor) -> bool:
    """Whether a mask is one; the layer says what is wrong with another."""
    return mask is None or (
        isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == x.shape[:-1]
    )
