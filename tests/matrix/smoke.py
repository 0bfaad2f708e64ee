"""Run by a Python that has normfuse installed: both doors, the commands, and the Python blocks of the README.

python smoke.py README.md
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import normfuse

BIN = Path(sys.executable).parent
#: What the README leaves to its reader.
LEFT_OPEN = {"options={...}": "options={'normfuse.policy': 'convert'}"}


class Block(nn.Module):
    """A pre-norm stream with two norms that become RMSNorms."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem, self.inner = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        normalized: torch.Tensor = self.last(x + self.inner(self.norm(x)))
        return normalized


def command(*words: str | Path) -> str:
    done = subprocess.run(
        [BIN / "normfuse", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def check_package() -> None:
    """It is the installed one."""
    assert Path(normfuse.__file__).is_relative_to(sys.prefix), normfuse.__file__
    assert (Path(normfuse.__file__).parent / "py.typed").is_file()
    assert "rewrite" in command("--help")


def check_compiled(model: nn.Module, x: torch.Tensor) -> None:
    """The entry point is found by name, and Inductor compiles what it is given."""
    with torch.no_grad():
        fast = torch.compile(model, backend="normfuse")
        made, exact = fast(x).double(), model.double()(x.double())
        model.float()
    assert normfuse.last_report().after == {"rms_norm": 2}, normfuse.last_report()
    # Normalized rows of 32 numbers, each a few dozen roundings away from the exact one.
    assert (made - exact).abs().max() < 64 * torch.finfo(torch.float32).eps * exact.abs().max()


def check_commands(model: nn.Module, x: torch.Tensor) -> None:
    torch.export.save(torch.export.export(model, (x,)), "model.pt2")
    assert "rms_norm" in command("explain", "model.pt2")
    command("rewrite", "model.pt2", "-o", "model_rms.pt2")
    assert "equivalent" in command("verify", "model.pt2", "model_rms.pt2")


def run_readme(text: str, model: nn.Module, x: torch.Tensor) -> int:
    """How many blocks there are; each runs with the names that the text speaks of."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names = {"torch": torch, "normfuse": normfuse, "model": model, "x": x, "args": (x,), "reference": model}
    for block in blocks:
        for given, meant in LEFT_OPEN.items():
            block = block.replace(given, meant)
        torch._dynamo.reset()
        exec(block, {**names, "candidate": normfuse.rewrite(model, (x,))})
    return len(blocks)


def main() -> None:
    readme = Path(sys.argv[1]).read_text(encoding="utf-8")
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(8, 32)
    check_package()
    check_compiled(model, x)
    check_commands(model, x)
    blocks = run_readme(readme, model, x)
    assert blocks > 0
    print(f"torch {torch.__version__}: smoke test and {blocks} blocks of the README passed")


if __name__ == "__main__":
    main()
