"""A CUDA device that is not there, as far as Inductor asks for one before it loads what it wrote.

Fake tensors carry shapes and devices, the properties are those of an H100, and whatever would touch the
device answers a constant. Nothing that is generated can run.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

__all__ = ["Driver", "pretend"]


class _H100:
    name, uuid, gcnArchName = "NVIDIA H100", "0", ""  # noqa: N815
    major, minor, multi_processor_count, warp_size = 9, 0, 132, 32
    regs_per_multiprocessor, max_threads_per_multi_processor, max_threads_per_block = 65536, 2048, 1024
    total_memory, L2_cache_size = 80 << 30, 50 << 20
    shared_memory_per_block, shared_memory_per_block_optin = 49152, 232448
    shared_memory_per_multiprocessor = 233472
    clock_rate, memory_clock_rate, memory_bus_width = 1980000, 2619000, 5120
    is_integrated = is_multi_gpu_board = 0


class Driver:
    """What Triton asks about the device that it writes code for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda

    def is_active(self) -> bool:
        return True


_CUDA = {
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "is_initialized": True,
    "get_device_properties": _H100,
    "_get_device_properties": _H100,
    "get_device_capability": (9, 0),
    "get_device_name": "NVIDIA H100",
    "_lazy_init": None,
    "synchronize": None,
    "set_device": None,
    "set_rng_state": None,
    "_exchange_device": 0,
    "_maybe_exchange_device": 0,
}
_C = {
    "_cuda_getCurrentRawStream": 0,
    "_cuda_getDevice": 0,
    "_cuda_setDevice": None,
    "_cuda_exchangeDevice": 0,
    "_cuda_maybeExchangeDevice": 0,
}
_INTERFACE = {
    "exchange_device": 0,
    "maybe_exchange_device": 0,
    "get_device_properties": _H100,
    "get_compute_capability": 90,
    "is_available": True,
    "raise_if_triton_unavailable": None,
}


def pretend() -> None:
    """For the rest of this process: use it in one of its own."""
    for place, values in (("torch.cuda.", _CUDA), ("torch._C.", _C)):
        for name, value in values.items():
            mock.patch(place + name, _answer(value), create=True).start()
    for name, value in _INTERFACE.items():
        target = f"torch._dynamo.device_interface.CudaInterface.{name}"
        mock.patch(target, staticmethod(_answer(value))).start()
    mock.patch("torch.cuda.get_rng_state", side_effect=_generator_state).start()
    processors = _H100.multi_processor_count
    mock.patch("normfuse.kernels.layout._PROCESSORS", processors).start()
    triton.runtime.driver.set_active(Driver())


def _generator_state(*_: Any) -> torch.Tensor:
    return torch.zeros(16, dtype=torch.uint8)


def _answer(value: Any) -> Any:
    return lambda *arguments, **more: value
