"""What ``torch.autocast`` does to an operator, asked of the dispatcher itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_iter

from normfuse.torch_compat import PreDispatchMode

__all__ = ["autocast_kernel", "is_autocast_enabled", "runs_autocast"]

#: Where both are among the operands, the dispatcher asks the accelerator.
_KEYS = {
    device: getattr(torch._C.DispatchKey, f"Autocast{name}")
    for device, name in (("cuda", "CUDA"), ("xpu", "XPU"), ("mps", "MPS"), ("cpu", "CPU"))
    if hasattr(torch._C.DispatchKey, f"Autocast{name}")
}


def is_autocast_enabled() -> bool:
    """Whether any device's operators may run in other types at this moment."""
    return bool(torch._C._is_any_autocast_enabled())


def autocast_kernel(
    func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[..., Any] | None:
    """The function that casts the operands and calls ``func`` again, where autocast has one for it.

    While it runs, autocast is switched off by the dispatcher.
    """
    key = _enabled_key(args, kwargs) if is_autocast_enabled() else None
    if key is None or not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
        return None
    return functools.partial(func._op_dk, key)


def runs_autocast(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether autocast changes the types inside of a composite operator, which has to be taken apart then."""
    if not is_autocast_enabled() or _enabled_key(args, kwargs) is None:
        return False
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    if not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite):
        return False
    probe = _Probe()
    with probe:
        func.decompose(*args, **kwargs)
    return probe.found


class _Probe(PreDispatchMode):
    """Notices whether anything that is called has an autocast kernel."""

    found = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.found = self.found or autocast_kernel(func, args, kwargs) is not None
        self.found = self.found or runs_autocast(func, args, kwargs)
        return func(*args, **kwargs)


def _enabled_key(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    devices = {leaf.device.type for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor)}
    for device, key in _KEYS.items():
        if device in devices and torch.is_autocast_enabled(device):
            return key
    return None
