"""The most memory that was in use since a moment: of a device, or resident in this process."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["peak_bytes", "reset_peak"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: str) -> None:
    """Forget how much was in use before."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5")  # Linux: forget the largest resident set so far


def peak_bytes(device: str) -> int | None:
    """Bytes in use at most since then; on a CPU of the whole process, and None where Linux does not tell."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    if not _STATUS.exists():
        return None
    line = next((text for text in _STATUS.read_text().splitlines() if text.startswith("VmHWM:")), None)
    return None if line is None else 1024 * int(line.split()[1])
