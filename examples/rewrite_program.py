"""Offline: export a model, rewrite the program, prove it, write it, and fold another checkpoint into it.

    python examples/rewrite_program.py

The files it writes load with ``torch.export.load`` where normfuse is not installed. The same from the shell:

    normfuse rewrite model.pt2 -o model_rms.pt2
    normfuse verify model.pt2 model_rms.pt2
    normfuse fold model_rms.map.json finetuned.pt -o finetuned_rms.pt
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

import normfuse


class Block(nn.Module):
    """Pre-norm: the residual stream is only read through a LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    blocks = [Block(64) for _ in range(4)]
    return nn.Sequential(nn.Linear(16, 64), *blocks, nn.LayerNorm(64), nn.Linear(64, 10)).eval()


def main(folder: Path) -> bool:
    model, x = make_model(seed=0), torch.randn(4, 7, 16)
    batch = Dim("batch", min=2, max=256)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "model.pt2")

    rewritten = normfuse.rewrite(program, expect={"rms_norm": 5})
    print(rewritten.report)
    path = rewritten.save(folder / "model_rms.pt2", map_path=folder / "model_rms.map.json")

    equal = normfuse.verify(folder / "model.pt2", path)  # on stored, random and hostile inputs
    print(f"equivalent: {equal.ok}, error over the original's own: {equal.error_ratio:.2f}")

    finetuned = make_model(seed=1)
    module = torch.export.load(path).module()
    module.load_state_dict(rewritten.weight_map.fold(finetuned.state_dict()))
    folded = normfuse.verify(finetuned, module, (x,))
    print(f"another checkpoint: {folded.ok}")
    return equal.ok and folded.ok


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(0 if main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary)) else 1)
