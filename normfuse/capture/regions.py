"""The state a graph runs in while it is captured: autocast regions and the gradient mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.fx import Graph, Node

from normfuse.capture.autocasting import is_autocast_enabled

__all__ = ["ENTERS_AUTOCAST", "EXITS_AUTOCAST", "Regions"]

ENTERS_AUTOCAST = (torch.amp.autocast_mode._enter_autocast,)
EXITS_AUTOCAST = (torch.amp.autocast_mode._exit_autocast,)
_DEVICES = ("cpu", "cuda", "xpu", "mps")


class Regions:
    """Follows a graph's switches of state, and writes them down where an operator is carried over whole."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @property
    def autocast(self) -> bool:
        return is_autocast_enabled()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Everything is as it was afterwards; casts are not remembered from one operator to the next."""
        with contextlib.ExitStack() as stack:
            stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
            torch.set_autocast_cache_enabled(False)
            for device in _DEVICES:
                stack.callback(torch.set_autocast_enabled, device, torch.is_autocast_enabled(device))
                stack.callback(torch.set_autocast_dtype, device, torch.get_autocast_dtype(device))
            stack.callback(torch._C._set_grad_enabled, torch.is_grad_enabled())
            yield

    @staticmethod
    def nothing() -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def enter(self, device: str, dtype: torch.dtype | None, enabled: bool, _cache: Any = None) -> Any:
        """Enter an autocast region of the graph; returns what :meth:`leave` needs."""
        return torch.amp.autocast_mode._enter_autocast(device, dtype, enabled, False)

    def leave(self, entered: Any) -> None:
        torch.amp.autocast_mode._exit_autocast(entered)

    def apply(self, function: Any, args: Sequence[Any]) -> None:
        """Follow a switch that stays in the graph."""
        if function is torch._C._set_grad_enabled:
            torch._C._set_grad_enabled(*args)

    @contextmanager
    def spelled_out(self) -> Iterator[None]:
        """What is written meanwhile runs under the autocast state of this moment."""
        enabled = [d for d in _DEVICES if torch.is_autocast_enabled(d)]
        entered = [self._enter_node(device) for device in enabled]
        yield
        for node in reversed(entered):
            self._graph.call_function(EXITS_AUTOCAST[0], (node,))

    def _enter_node(self, device: str) -> Node:
        args = (device, torch.get_autocast_dtype(device), True, True)
        return self._graph.call_function(ENTERS_AUTOCAST[0], args)
