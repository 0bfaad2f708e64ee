"""What the compiler makes of a kernel: registers, spills, shared memory and the width of its loads.

Nothing is run, and no device is needed: Triton compiles for a named one, and its own copy of ``cuobjdump``
reads the result.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.kernel_subjects import Subject

__all__ = ["SHARED_LIMIT", "SPILL_LIMIT", "Made", "make"]

#: Bytes of shared memory that one program may have (CUDA C++ Programming Guide, table of capabilities).
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
#: Bytes a thread.
SPILL_LIMIT = 0


@dataclass(frozen=True)
class Made:
    """Attributes:
    rows: of a tile.
    stack: bytes of local memory a thread: registers that were spilled.
    vector_loads, loads: instructions that read 16 bytes a thread or more, and all that read.
    vector_stores, stores: the same for those that write.
    """

    kernel: str
    width: int
    dtype: str
    target: int
    rows: int
    warps: int
    registers: int
    stack: int
    shared: int
    vector_loads: int
    loads: int
    vector_stores: int
    stores: int


def make(subject: Subject, target: int) -> Made:
    """Compile for compute capability ``target``, 90 for 9.0."""
    source = ASTSource(
        fn=subject.kernel,
        signature=_signature(subject),
        constexprs=subject.constants,
        attrs=_aligned(subject),
    )
    options = {"num_warps": subject.warps, "num_stages": subject.stages}
    built: Any = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    registers, stack = _resources(built.asm["cubin"])
    return Made(
        subject.name,
        subject.width,
        subject.dtype,
        target,
        subject.constants.get("ROWS", subject.constants.get("BLOCK_M", 1)),
        subject.warps,
        registers,
        stack,
        int(built.metadata.shared),
        *_accesses(built.asm["ptx"]),
    )


def _signature(subject: Subject) -> dict[str, str]:
    return {name: subject.types.get(name, "constexpr") for name in subject.kernel.arg_names}


def _aligned(subject: Subject) -> dict[tuple[int], list[list[Any]]]:
    """What Triton sees at a call: addresses and strides that 16 divides."""
    if not subject.is_aligned:
        return {}
    names = list(subject.kernel.arg_names)
    wide = [
        n for n, kind in subject.types.items() if kind[0] == "*" or n == "outputs" or n.endswith("stride")
    ]
    return {(names.index(name),): [["tt.divisibility", 16]] for name in wide}


def _resources(cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", printed)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {printed!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _accesses(ptx: str) -> tuple[int, int, int, int]:
    """Copies into shared memory (``cp.async``, TMA) count as loads."""
    loads = re.findall(r"ld\.global\S*|cp\.async\S*\s+\[.*?\], \[.*?\], 0x[0-9a-f]+", ptx)
    stores = re.findall(r"st\.global\S*", ptx)
    return _wide(loads), len(loads), _wide(stores), len(stores)


def _wide(accesses: list[str]) -> int:
    return sum(bool(re.search(r"\.v4\.\w32|\.v8\.\w32|\.v2\.\w64|\.v4\.\w64|0x10$", one)) for one in accesses)
