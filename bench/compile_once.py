"""One compilation of a random GPT-2 in this process; prints its seconds as JSON.

Run by ``compile_time.py`` in a fresh process with its own ``TORCHINDUCTOR_CACHE_DIR``.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import torch
import typer

__all__ = ["compile_once"]


def compile_once(layers: int, backend: str) -> dict[str, float | None]:
    """Seconds of the first call under ``backend``, and normfuse's own part of them if it took any.

    The first call compiles and runs once; building the model and importing PyTorch come before.
    """
    model, tokens = _gpt2(layers)
    with torch.no_grad():
        model(tokens, use_cache=False)
        compiled: Any = torch.compile(model, backend=backend)
        start = time.perf_counter()
        compiled(tokens, use_cache=False)
        total = time.perf_counter() - start
    return {"total": total, "own": _own_seconds() if backend == "normfuse" else None}


def _gpt2(layers: int) -> tuple[Any, torch.Tensor]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=768, n_head=12)).eval()
    return model, torch.randint(50257, (1, 64))


def _own_seconds() -> float | None:
    import normfuse

    seconds = normfuse.last_report().to_dict().get("seconds")
    return None if seconds is None else float(seconds)


def main(
    layers: Annotated[int, typer.Option()] = 12, backend: Annotated[str, typer.Option()] = "inductor"
) -> None:
    print(json.dumps(compile_once(layers, backend)))


if __name__ == "__main__":
    typer.run(main)
