"""One run: a task, a norm and a seed."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfuse
from bench.training.tasks import Task
from bench.training.watch import Watch, norms_of

__all__ = ["NORMS", "train"]

NORMS = ("layer_norm", "batch_norm", "power_norm", "rep_batch_norm", "unified_norm")
#: Shares of the steps: smoothing starts late in the papers, and the learning rate warms up.
_WARMUP, _RATE_WARMUP = 0.1, 0.1
_PEAK, _EVERY = 1e-3, 20

Say = Callable[[str], None]


def train(task: Task, norm: str, seed: int, steps: int, say: Say = lambda text: None) -> dict[str, Any]:
    """Train, and return everything that the page needs; a run that diverges ends, and says so."""
    torch.manual_seed(seed)
    model = task.model()
    options = _options(task, norm, steps)
    if norm != "layer_norm":
        normfuse.convert(model, norm, **options)
    watch = Watch(norms_of(model))
    started = time.perf_counter()
    losses, evaluations, diverged = _steps(task, model, seed, steps, say)
    watch.forget_outliers()
    final = _evaluate(model, task)
    watch.close()
    skipped = [int(b) for name, b in model.named_buffers() if name.endswith("skip_counter")]
    return {
        "task": task.name, "norm": norm, "seed": seed, "steps": steps, "options": options, "losses": losses,
        "evaluations": [*evaluations, {"step": steps, **final}], "diverged": diverged,
        "fluctuation": watch.fluctuation(), "movements": watch.movements(), "outliers": watch.outliers(),
        "skipped_batches": sum(skipped),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": time.perf_counter() - started, "torch": torch.__version__,
        "python": platform.python_version(), "threads": torch.get_num_threads(),
    }  # fmt: skip


def _options(task: Task, norm: str, steps: int) -> dict[str, Any]:
    warmup = {"warmup_iters": max(1, int(_WARMUP * steps))}
    return {
        "power_norm": warmup,
        "unified_norm": {**warmup, "window_size": 4, "outlier_filtration": task.filters},
    }.get(norm, {})


def _steps(
    task: Task, model: nn.Module, seed: int, steps: int, say: Say
) -> tuple[list[float], list[dict[str, float]], bool]:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    losses: list[float] = []
    evaluations: list[dict[str, float]] = []
    for step in range(steps):
        if step and step % (steps // 5 or 1) == 0:
            evaluations.append({"step": step, **_evaluate(model, task)})
        inputs, targets = task.batch(generator)
        optimizer.param_groups[0]["lr"] = _rate(step / steps)
        loss = _loss(model.train()(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return losses, evaluations, True
        if step % _EVERY == 0:
            say(f"step {step} of {steps}, loss {losses[-1]:.3f}")
    return losses, evaluations, False


def _rate(done: float) -> float:
    """Up in a line, down in half a cosine."""
    return _PEAK * min(max(done, 1e-3) / _RATE_WARMUP, 0.5 + 0.5 * math.cos(math.pi * done))


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


@torch.no_grad()
def _evaluate(model: nn.Module, task: Task) -> dict[str, float]:
    """Loss and share of right answers on what was held out."""
    model.eval()
    outputs = [(model(inputs), targets) for inputs, targets in task.held_out]
    loss = sum(float(_loss(y, t)) * len(t) for y, t in outputs) / sum(len(t) for _, t in outputs)
    right = torch.cat([(y.argmax(-1) == t).flatten() for y, t in outputs]).double().mean()
    return {"loss": loss, "accuracy": float(right)}
