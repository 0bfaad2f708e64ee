"""Whether it pays on a CPU to multiply a norm's factor behind the products, with the weights as constants.

    OMP_NUM_THREADS=1 python -m bench.deferred_cpu

Small decoders, one token and many, each way with weights of its own; the ways take turns, and ``inductor``
does so twice: how far the ratio of the two reaches from 1 is the noise. Seconds are those of the processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import nn

from bench.llama_step import LLAMA, LlamaStep
from bench.subjects import randomized
from normfuse.cli.decoder import GPT2_SMALL, DecoderSize, DecoderStep, decode_inputs

WAYS = ("inductor", "deferred", "inductor")
TOKENS = (1, 128)
_ROUNDS, _CALLS = 30, 5
Make = Callable[[DecoderSize], nn.Module]
SUBJECTS: tuple[tuple[str, Make, DecoderSize], ...] = (
    ("llama", LlamaStep, replace(LLAMA, layers=2, vocabulary=1000)),
    ("gpt2", DecoderStep, replace(GPT2_SMALL, layers=2, vocabulary=1000)),
)


def ratios(make: Make, size: DecoderSize, tokens: int) -> tuple[float, float, float]:
    """Milliseconds of Inductor's norms, the deferred ones' share of that, and that of a second copy."""
    token, position, *cache = decode_inputs(size)
    inputs = (token.expand(1, tokens).contiguous(), position.expand(1, tokens).contiguous(), *cache)
    with torch.no_grad():
        runs = [_compiled(make(size), way) for way in WAYS]
        for run in runs:
            for _ in range(3):
                run(*inputs)
        rounds = [[_seconds(run, inputs) for run in runs] for _ in range(_ROUNDS)]
    shares = (median(one[way] / one[0] for one in rounds) for way in (1, 2))
    return 1e3 * median(one[0] for one in rounds), *shares  # type: ignore[return-value]


def _compiled(model: nn.Module, way: str) -> Callable[..., Any]:
    """In a function of its own: models that share one are compiled for weights that change."""
    scope: dict[str, Any] = {"model": randomized(model)}
    exec("def step(*inputs): return model(*inputs)", scope)
    options: dict[str, Any] = {"normfuse.lower": way, "normfuse.freeze": "on"}
    compiled: Callable[..., Any] = torch.compile(scope["step"], backend="normfuse", options=options)
    return compiled


def _seconds(run: Callable[..., Any], inputs: tuple[Any, ...]) -> float:
    started = time.process_time()
    for _ in range(_CALLS):
        run(*inputs)
    return (time.process_time() - started) / _CALLS


def main() -> None:
    """Print a line for each model and number of tokens."""
    for tokens in TOKENS:
        for name, make, size in SUBJECTS:
            took, deferred, noise = ratios(make, size, tokens)
            print(
                f"{name}, {tokens} tokens: {took:.3f} ms, deferred {deferred:.3f}, again {noise:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
