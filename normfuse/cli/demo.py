"""The demo: a vision transformer trained here and now, and a decode step of GPT-2's size.

Both lose their LayerNorms; neither may change its answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from normfuse.benchmark.timing import Schedule
from normfuse.cli.comparison import BACKENDS, Comparison, compare, latency_table, verification_table
from normfuse.cli.decoder import GPT2_SMALL, DecoderSize, DecoderStep, decode_inputs
from normfuse.cli.digits import Digits, DigitTransformer, accuracy, load_digits, train
from normfuse.files import write_text

__all__ = ["Scale", "run_demo"]

#: Divides the number of test images.
_BATCH = 40


@dataclass(frozen=True)
class Scale:
    """How large the demo is."""

    training_seconds: float
    layers: int
    width: int
    decoder: DecoderSize
    digits_schedule: Schedule
    decoder_schedule: Schedule

    @classmethod
    def full(cls, training_seconds: float) -> Scale:
        return cls(training_seconds, 4, 96, GPT2_SMALL, Schedule(seconds=12.0), Schedule(seconds=15.0))

    @classmethod
    def quick(cls) -> Scale:
        brief = Schedule(seconds=0.5, min_rounds=8, max_rounds=60)
        decoder = DecoderSize(layers=2, width=64, heads=2, vocabulary=256, positions=128, cached=16)
        return cls(2.0, 2, 32, decoder, brief, brief)


@dataclass(frozen=True)
class DigitsOutcome:
    """The vision transformer's comparison, and its answers to the test images."""

    comparison: Comparison
    steps: int
    accuracy: Mapping[str, float]
    differing: int

    def to_dict(self) -> dict[str, Any]:
        outcome = {"steps": self.steps, "accuracy": dict(self.accuracy), "differing": self.differing}
        return {**outcome, **self.comparison.to_dict()}


def run_demo(seconds: float = 30.0, quick: bool = False, json_file: Path | None = None) -> bool:
    """Run both parts and print them; True when no prediction differs and both are verified."""
    scale = Scale.quick() if quick else Scale.full(seconds)
    # cores come and go on a shared machine; one thread each compares the code and not the scheduler
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(scale, Console(), json_file)
    finally:
        torch.set_num_threads(threads)


def _run(scale: Scale, console: Console, json_file: Path | None) -> bool:
    torch.manual_seed(0)
    digits = _digits_part(scale, console)
    decoder = _decoder_part(scale, console)
    agreed = digits.differing == 0 and digits.comparison.ok and decoder.ok
    verdict = "the same answers from cheaper norms" if agreed else "the answers DIFFER"
    console.print(f"\n[bold]{verdict}[/]")
    if json_file is not None:
        result = {"agreed": agreed, "digits": digits.to_dict(), "decoder": decoder.to_dict()}
        write_text(json_file, json.dumps(result, indent=2))
    return agreed


def _digits_part(scale: Scale, console: Console) -> DigitsOutcome:
    digits = load_digits()
    model = DigitTransformer(scale.layers, scale.width)
    console.rule("1. A vision transformer for handwritten digits", align="left")
    console.print(f"training on {len(digits.train_images)} images for {scale.training_seconds:.0f} s ...")
    steps = train(model, digits, scale.training_seconds)
    console.print(f"{steps} steps; compiling with {' and '.join(BACKENDS)} ...\n")
    comparison = compare(model, (digits.test_images[:_BATCH],), scale.digits_schedule)
    outcome = _judge(comparison, digits, steps)
    _show(comparison, console)
    shares = ", ".join(f"{name} {share:.2%}" for name, share in outcome.accuracy.items())
    console.print(f"test accuracy: {shares}")
    if min(outcome.accuracy.values()) < 0.95:
        console.print("(95 % and more is usual; --seconds gives the training more time)")
    console.print(f"differing predictions: {outcome.differing} of {len(digits.test_images)}\n")
    return outcome


def _judge(comparison: Comparison, digits: Digits, steps: int) -> DigitsOutcome:
    with torch.no_grad():
        answers = {k: _predict(call, digits.test_images) for k, call in comparison.compiled.items()}
    shares = {backend: accuracy(answer, digits.test_labels) for backend, answer in answers.items()}
    yardstick, ours = (answers[backend] for backend in BACKENDS)
    return DigitsOutcome(comparison, steps, shares, int((yardstick != ours).sum()))


def _predict(call: Callable[..., Any], images: Tensor) -> Tensor:
    """Answers batch by batch, so that the shape stays the one that was compiled."""
    return torch.cat([call(batch).argmax(-1) for batch in images.split(_BATCH)])


def _decoder_part(scale: Scale, console: Console) -> Comparison:
    size = scale.decoder
    console.rule("2. One decode step of a GPT-2", align="left")
    shape = f"{size.layers} layers of width {size.width}, {size.vocabulary} tokens"
    console.print(f"{shape}, {size.cached} positions cached; compiling ...\n")
    model = DecoderStep(size).eval()
    comparison = compare(model, decode_inputs(size), scale.decoder_schedule)
    _show(comparison, console)
    return comparison


def _show(comparison: Comparison, console: Console) -> None:
    console.print(str(comparison.report), highlight=False, markup=False, soft_wrap=True)
    for table in (verification_table(comparison), latency_table(comparison)):
        console.print(table)
