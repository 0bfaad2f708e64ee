"""One compilation of a random GPT-2 in this process; prints its seconds as JSON.

Run by ``compile_time.py`` in a fresh process with its own ``TORCHINDUCTOR_CACHE_DIR``.
"""

from __future__ import annotations

import copy
import json
import resource
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer

__all__ = ["compile_once"]


class _Clock:
    """Seconds of this process, in some of its functions: on the clock, and of a processor."""

    def __init__(self) -> None:
        self.wall, self.cpu = 0.0, 0.0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.wall += time.perf_counter() - wall
                self.cpu += time.process_time() - cpu

        return timed


def compile_once(layers: int, backend: str, width: int, runs_inductor: bool) -> dict[str, float | None]:
    """Seconds of the first call under ``backend``, and normfuse's own part of them if it took any.

    The first call compiles and runs once; building the model and importing PyTorch come before. Processor
    seconds are those of this process, and in total those of the compilers that it starts as well. Own are all
    seconds in the backend but those of Inductor, of which those are own again that products are measured in.
    Without Inductor the rewritten graph is run as it is.
    """
    model, tokens = _gpt2(layers, width)
    with torch.no_grad():
        model(tokens, use_cache=False)
        own = _watched(runs_inductor) if backend == "normfuse" else {}
        compiled: Any = torch.compile(model, backend=backend)
        wall, cpu = time.perf_counter(), _processor_seconds()
        compiled(tokens, use_cache=False)
        total = {"total": time.perf_counter() - wall, "cpu": _processor_seconds() - cpu}
    return {**total, "own": _own(own, "wall"), "own_cpu": _own(own, "cpu")}


def _watched(runs_inductor: bool) -> dict[str, _Clock]:
    """Clocks in the functions where normfuse begins, hands on to Inductor, imports it, and measures in it."""
    from normfuse.backends import compile as backend
    from normfuse.backends import inner
    from normfuse.freezing import fastest, library

    clocks = {"backend": _Clock(), "inductor": _Clock(), "products": _Clock()}
    inside = inner.run_inner if runs_inductor else lambda gm, *_: copy.deepcopy(gm)
    places: list[tuple[Any, str, str, Any]] = [
        (backend, "compile_graph", "backend", backend.compile_graph),
        (inner, "run_inner", "inductor", inside),
        (library, "_register", "inductor", library._register),
        (fastest, "figures", "products", fastest.figures),
    ]
    for module, name, clock, function in places:
        setattr(module, name, clocks[clock](function))
    return clocks


def _own(clocks: dict[str, _Clock], which: str) -> float | None:
    if not clocks:
        return None
    taken = {name: float(getattr(clock, which)) for name, clock in clocks.items()}
    return taken["backend"] - taken["inductor"] + taken["products"]


def _processor_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _gpt2(layers: int, width: int) -> tuple[Any, torch.Tensor]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=12)).eval()
    return model, torch.randint(50257, (1, 64))


def main(
    layers: Annotated[int, typer.Option()] = 12,
    backend: Annotated[str, typer.Option()] = "inductor",
    width: Annotated[int, typer.Option()] = 768,
    inductor: Annotated[bool, typer.Option(help="Or run the rewritten graph as it is.")] = True,
) -> None:
    print(json.dumps(compile_once(layers, backend, width, inductor)))


if __name__ == "__main__":
    typer.run(main)
