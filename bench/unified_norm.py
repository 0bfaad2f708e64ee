"""A transformer with UnifiedNorm beside one with LayerNorm, in evaluation, under Inductor and under normfuse.

    python -m bench.unified_norm --json bench/results/unified_norm.json

Everyone has weights of its own; all are frozen but Inductor as it comes, which is the baseline. Each process
measures all of them, interleaved; kernels are the C++ functions that Inductor wrote for the model. Memory is
the largest resident set of a process of its own during a call, Python and PyTorch included.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.nn import functional as F

from normfuse.backends.frozen import frozen
from normfuse.benchmark.contenders import own_function
from normfuse.benchmark.machine import machine
from normfuse.benchmark.memory import peak_bytes, reset_peak
from normfuse.benchmark.timing import AGAIN, Rounds, Schedule, merge, run_rounds
from normfuse.files import json_text, write_text
from normfuse.nn import UnifiedNorm

__all__ = ["SIZES", "Transformer"]

#: Width, blocks, heads, tokens.
SIZES = {
    "tiny": (192, 12, 3, 197),
    "small": (384, 12, 6, 197),
    "base": (768, 12, 12, 197),
}
LN, LN_FROZEN, LN_NORMFUSE, UN = (
    "LayerNorm, Inductor", "LayerNorm, Inductor frozen", "LayerNorm, normfuse", "UnifiedNorm, normfuse",
)  # fmt: skip
LINEUP = (LN, LN_FROZEN, LN_NORMFUSE, UN, "UnifiedNorm, Inductor frozen")


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = norm(width), norm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        made: Tensor = x + self.down(F.gelu(self.up(self.norm_2(x))))
        return made


class Transformer(nn.Module):
    """Blocks, a last norm, and a head on the mean of the tokens."""

    def __init__(self, width: int, blocks: int, heads: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Block(width, heads, norm) for _ in range(blocks)])
        self.norm, self.head = norm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return made


def _contender(name: str, size: str) -> tuple[Callable[[], Any], int]:
    """A compiled model, and how many kernels Inductor wrote for it."""
    width, blocks, heads, tokens = SIZES[size]
    torch.manual_seed(0)
    norm: Callable[[int], nn.Module] = UnifiedNorm if name.startswith("UnifiedNorm") else nn.LayerNorm
    model = Transformer(width, blocks, heads, norm).eval()
    x = torch.randn(1, tokens, width)
    own = own_function(model, name)
    if name.endswith("frozen"):
        call: Callable[..., Any] = frozen(own)
    else:
        call = torch.compile(own, backend="normfuse" if name.endswith("normfuse") else "inductor")
    _, codes = run_and_get_code(call, x)
    kernels = sum(len(re.findall(r"^\s+cpp_fused\w*\(", code, flags=re.MULTILINE)) for code in codes)
    return lambda: call(x), kernels


def _measured(size: str, seconds: float) -> dict[str, Any]:
    torch.set_num_threads(1)
    with torch.no_grad():
        made = {name: _contender(name, size) for name in LINEUP}
        rounds = run_rounds({n: call for n, (call, _) in made.items()}, LN, Schedule(seconds=seconds))
    return {"rounds": rounds.to_json(), "kernels": {name: count for name, (_, count) in made.items()}}


def _peak(name: str, size: str) -> int | None:
    """Bytes resident at most during calls; what it took to compile is left out."""
    torch.set_num_threads(1)
    with torch.no_grad():
        call, _ = _contender(name, size)
        call()
        gc.collect()
        reset_peak("cpu")
        call()
    return peak_bytes("cpu")


def _child(*words: str) -> Any:
    command = [sys.executable, "-m", "bench.unified_norm", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _in_processes(size: str, processes: int, seconds: float) -> dict[str, Any]:
    """Ratios to the baseline over several fresh processes, and kernels."""
    runs = []
    for number in range(processes):
        Console(stderr=True).print(f"  {size}: process {number + 1} of {processes}", highlight=False)
        runs.append(_child("--child", size, "--seconds", str(seconds)))
    Console(stderr=True).print(f"  {size}: memory", highlight=False)
    peaks = {name: _child("--child", size, "--memory", name) for name in LINEUP}
    found = merge([Rounds.from_json(run["rounds"]) for run in runs])
    return {
        name: {
            "ratio": ratio.median, "low": ratio.low, "high": ratio.high, "milliseconds": 1000 * ratio.seconds,
            "kernels": runs[0]["kernels"].get(name.removesuffix(AGAIN)),
            "peak_bytes": peaks.get(name.removesuffix(AGAIN)),
        }
        for name, ratio in found.items()
    }  # fmt: skip


def _table(results: dict[str, dict[str, Any]]) -> Table:
    table = Table("size", "model", "time / baseline", "interval", "ms", "kernels", "MiB", box=None)
    for size, found in results.items():
        for name, one in found.items():
            interval = f"{one['low']:.3f} .. {one['high']:.3f}"
            milliseconds, kernels = f"{one['milliseconds']:.1f}", str(one["kernels"])
            peak = "" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 2**20:.0f}"
            table.add_row(size, name, f"{one['ratio']:.3f}", interval, milliseconds, kernels, peak)
    return table


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    sizes: Annotated[list[str] | None, typer.Option("--size", help="One of SIZES; repeatable.")] = None,
    processes: Annotated[int, typer.Option(min=1)] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time of one process.")] = 10.0,
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
    memory: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure and print."""
    if child is not None:
        made = _measured(child, seconds) if memory is None else _peak(memory, child)
        sys.stdout.write(json.dumps(made) + "\n")
        return
    unknown = [size for size in sizes or () if size not in SIZES]
    if unknown:
        raise typer.BadParameter(f"no size {unknown[0]!r}; there are {', '.join(SIZES)}")
    results = {size: _in_processes(size, processes, seconds) for size in sizes or SIZES}
    if json_file is not None:
        write_text(json_file, json_text({"machine": machine(), "results": results}))
    Console(width=120).print(_table(results))


if __name__ == "__main__":
    typer.run(main)
