"""Latency of batch-norm networks: Inductor, Inductor with freezing, and normfuse.

    python bench/batch_norm.py resnet18 --processes 3

Freezing makes constants of the weights: what Inductor then folds can no longer follow a weight that
changes. normfuse folds and keeps the weights inputs. Contenders take turns in every round; a figure is
the median of paired ratios over several processes, each with caches of its own. One thread, random weights.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from normfuse.cli.timing import Rounds, Schedule, merge, run_rounds, run_rounds_in_processes

__all__ = ["Subject", "rounds_of"]

BASELINE = "inductor"


class Subject(str, Enum):
    """A network of the shape of torchvision's."""

    RESNET18 = "resnet18"
    RESNET50 = "resnet50"
    SMALL = "small"


class Block(nn.Module):
    """Two or three convolutions beside a shortcut (He et al. 2016, figures 2 and 5)."""

    def __init__(self, i: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        o = width * 4 if bottleneck else width
        sizes = [(i, width, 1, 1), (width, width, 3, stride), (width, o, 1, 1)]
        plain = [(i, width, 3, stride), (width, o, 3, 1)]
        convs = [_conv_bn(*size) for size in (sizes if bottleneck else plain)]
        between = [layer for conv in convs[:-1] for layer in (conv, nn.ReLU(inplace=True))]
        self.branch = nn.Sequential(*between, convs[-1])
        self.shortcut = _conv_bn(i, o, 1, stride) if i != o or stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def _conv_bn(i: int, o: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(o))


def _resnet(depths: tuple[int, ...], bottleneck: bool, width: int = 64) -> nn.Module:
    layers: list[nn.Module] = [_conv_bn(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    i = width
    for stage, depth in enumerate(depths):
        for index in range(depth):
            block = Block(i, width << stage, 2 if stage and not index else 1, bottleneck)
            layers.append(block)
            i = (width << stage) * (4 if bottleneck else 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 1000))


def _build(subject: Subject, batch: int, size: int) -> tuple[nn.Module, Tensor]:
    depths = {Subject.RESNET18: (2, 2, 2, 2), Subject.RESNET50: (3, 4, 6, 3), Subject.SMALL: (1, 1)}[subject]
    model = _resnet(depths, subject is Subject.RESNET50, 8 if subject is Subject.SMALL else 64).eval()
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                value.normal_(0.0, 0.2)
    return model, torch.randn(batch, 3, size, size)


def _with_freezing(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    """Freezing has to be on while Dynamo traces, and while Inductor compiles."""
    import torch._inductor.config as inductor

    compiled: Callable[[Tensor], Any] = torch.compile(model)
    with inductor.patch(freezing=True):
        compiled(x)
    return compiled


def rounds_of(subject: Subject, seconds: float, batch: int, size: int) -> Rounds:
    """Time all contenders in this process, and check that they agree."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = _build(subject, batch, size)
    with torch.no_grad():
        expected = model(x)
        contenders: dict[str, Any] = {}
        for name in (BASELINE, "normfuse", "inductor, frozen"):
            contenders[name] = _compiled(model, name, x)
            torch.testing.assert_close(contenders[name](x), expected, rtol=1e-3, atol=1e-3)
        calls = {name: (lambda call=call: call(x)) for name, call in contenders.items()}
        return run_rounds(calls, BASELINE, Schedule(seconds=seconds))


def _compiled(model: nn.Module, name: str, x: Tensor) -> Any:
    own = copy.deepcopy(model)
    if name == "inductor, frozen":
        return _with_freezing(own, x)
    return torch.compile(own, backend="normfuse" if name == "normfuse" else "inductor")


def main(
    subject: Annotated[Subject, typer.Argument()] = Subject.RESNET18,
    processes: Annotated[int, typer.Option(min=0, help="0: this one, and print its rounds as JSON.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time per process, without compiling.")] = 30.0,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    size: Annotated[int, typer.Option(min=32)] = 224,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Time SUBJECT in fresh processes and print the ratios to Inductor."""
    if processes == 0:
        print(rounds_of(subject, seconds, batch, size).to_json())
        return
    from latency import ratio_table

    own = [sys.executable, __file__, subject.value, "--processes", "0", "--seconds", str(seconds)]
    own += ["--batch", str(batch), "--size", str(size)]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = merge(run_rounds_in_processes(own, processes))
    Console().print(ratio_table(found, processes))
    if json_file is not None:
        json_file.write_text(json.dumps({k: asdict(r) for k, r in found.items()}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
