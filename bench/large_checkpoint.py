"""What it takes to rewrite a large checkpoint folder: memory of the process's own, and time beside a copy.

    python bench/large_checkpoint.py --gigabytes 2

A folder of the shape of OPT in bfloat16 is made on the spot, rewritten in a process of its own, and removed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, HEADS, VOCABULARY, POSITIONS = 4096, 32, 50272, 2048
SHARD = 1_000_000_000

_REWRITE = """
import json, sys, time
started = time.perf_counter()
from normfuse.checkpoint import rewrite_folder
steps = []
def note(text): steps.append((text, time.perf_counter(), time.process_time()))
rewrite_folder(sys.argv[1], sys.argv[2], progress=note)
note("end")
begun, ended = next(s for s in steps if s[0].startswith("writing")), steps[-1]
times = {"whole": ended[1] - started, "writing": ended[1] - begun[1], "processor": ended[2] - begun[2]}
print(json.dumps(times))
"""


@dataclass(frozen=True)
class Figures:
    """Bytes and seconds."""

    size: int
    largest: int
    peak: int
    whole: float
    writing: float
    processor: float
    copying: float

    def lines(self) -> Iterator[str]:
        """For people."""
        allowed, mega = (2 * self.largest + (1 << 30)) / 1e9, self.size / 1e6
        rows = (
            ("checkpoint", f"{self.size / 1e9:.2f} GB, largest tensor {self.largest / 1e9:.3f} GB"),
            ("peak of anonymous memory", f"{self.peak / 1e9:.2f} GB, of {allowed:.2f} GB allowed"),
            ("copying with fsync, mean of 2", f"{self.copying:.1f} s, {mega / self.copying:.0f} MB/s"),
            ("rewriting, files alone", f"{self.writing:.1f} s, {mega / self.writing:.0f} MB/s"),
            ("processor time of that", f"{self.processor:.1f} s, {mega / self.processor:.0f} MB/s"),
            ("rewriting, whole process", f"{self.whole:.1f} s, {mega / self.whole:.0f} MB/s"),
            ("beside the speed of copying", f"{self.copying / self.writing:.0%} files alone"),
            ("processes that were running", f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"),
        )
        for name, value in rows:
            yield f"{name:30} {value}"


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """The tensors of OPT."""
    ffn = 4 * WIDTH
    found: dict[str, tuple[int, ...]] = {
        "model.decoder.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.decoder.embed_positions.weight": (POSITIONS + 2, WIDTH),
    }
    for n in range(layers):
        layer = f"model.decoder.layers.{n}"
        linear = {f"self_attn.{p}_proj": (WIDTH, WIDTH) for p in "kvq"} | {
            "self_attn.out_proj": (WIDTH, WIDTH)
        }
        linear |= {"fc1": (ffn, WIDTH), "fc2": (WIDTH, ffn)}
        for name, shape in linear.items():
            found |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            found |= {f"{layer}.{norm}.{part}": (WIDTH,) for part in ("weight", "bias")}
    return found | {f"model.decoder.final_layer_norm.{part}": (WIDTH,) for part in ("weight", "bias")}


def layers_for(size: float) -> int:
    """So many layers that the files have about this size."""
    fixed, one = (2 * sum(map(math.prod, shapes(n).values())) for n in (0, 1))
    return max(1, round((size - fixed) / (one - fixed)))


def make(folder: Path, layers: int) -> None:
    """The folder, in files of a gigabyte."""
    config = {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "dtype": "bfloat16", "hidden_size": WIDTH,
        "word_embed_proj_dim": WIDTH, "ffn_dim": 4 * WIDTH, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS,
        "do_layer_norm_before": True,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    parts = list(_parts(shapes(layers)))
    places: dict[str, str] = {}
    noise = (torch.randn(1 << 22) * 0.02).bfloat16()
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(
            {name: _filled(name, shape, noise) for name, shape in part.items()},
            folder / file,
            {"format": "pt"},
        )
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _parts(tensors: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    part: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in tensors.items():
        if part and size + 2 * math.prod(shape) > SHARD:
            yield part
            part, size = {}, 0
        part[name], size = shape, size + 2 * math.prod(shape)
    yield part


def _filled(name: str, shape: tuple[int, ...], noise: torch.Tensor) -> torch.Tensor:
    count = math.prod(shape)
    entries = noise.repeat(-(-count // noise.numel()))[:count].reshape(shape).clone()
    return entries + 1 if "norm.weight" in name else entries


def copy(source: Path, target: Path) -> float:
    """The seconds that copying the files to the disk takes."""
    started = time.perf_counter()
    target.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)
        descriptor = os.open(target / file.name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - started


def rewrite(source: Path, target: Path) -> tuple[dict[str, float], int]:
    """The seconds of a process that rewrites the folder, and the most anonymous memory that it had."""
    command = [sys.executable, "-c", _REWRITE, str(source), str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _anonymous(process.pid))
        time.sleep(0.01)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(process.returncode)
    times: dict[str, float] = json.loads(process.stdout.read())
    return times, peak


def _anonymous(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def measure(gigabytes: float, folder: Path) -> Figures:
    """Make and rewrite a checkpoint of this size below ``folder``; it is copied before that and after it."""
    layers = layers_for(1e9 * gigabytes)
    make(folder / "in", layers)
    os.sync()
    before = copy(folder / "in", folder / "copy")
    shutil.rmtree(folder / "copy")
    times, peak = rewrite(folder / "in", folder / "out")
    shutil.rmtree(folder / "out")
    os.sync()
    copying = (before + copy(folder / "in", folder / "copy")) / 2
    sizes = [2 * math.prod(shape) for shape in shapes(layers).values()]
    return Figures(sum(sizes), max(sizes), peak, copying=copying, **times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the checkpoint (default: 2)")
    parser.add_argument("--folder", type=Path, help="where to make it (default: a temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        print("\n".join(measure(given.gigabytes, Path(folder)).lines()))


if __name__ == "__main__":
    main()
