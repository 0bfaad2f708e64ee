"""Serving: generation, caches, threads."""

from __future__ import annotations

import copy
import gc
import threading
from collections import Counter
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

import normfuse
from normfuse.folding.store import living
from normfuse.report import Report
from tests.backends.networks import example, prenorm
from tests.situations.models import close, fast, outputs, pair, report
from tests.situations.registry import situation

SERVING = "Serving"
ALL = "works, 3 of 3 converted"


def _decoder() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=4, n_positions=64, vocab_size=97, bos_token_id=1, eos_token_id=None
    )
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def _generated(cache: str) -> Report:
    """Greedy tokens of the compiled model, and the number of folded copies."""
    model, reference = pair(_decoder())
    settings = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": cache, "pad_token_id": 0}
    prompt = torch.tensor([[5, 7, 11, 13], [2, 3, 5, 8]])
    gc.collect()  # models of other tests may be on their way out
    before = len(living())
    model.forward = fast(model.forward)
    found, wanted = model.generate(prompt, **settings), reference.generate(prompt, **settings)
    assert torch.equal(found, wanted)
    assert len(living()) - before == 8, "prefill and decode share one copy of each folded weight"
    return report()


@situation(SERVING, "`generate` with a dynamic cache", "works, 5 of 5 converted", slow=True)
def dynamic_cache() -> Report:
    return _generated("dynamic")


@situation(SERVING, "`generate` with a static cache", "works, 5 of 5 converted", slow=True)
def static_cache() -> Report:
    return _generated("static")


@situation(SERVING, "`torch.inference_mode`", ALL)
def inference_mode() -> Report:
    model, reference = pair(prenorm())
    run = fast(model)
    with torch.inference_mode():
        for batch in (4, 4, 2):
            close(run(example(batch)), reference(example(batch)))
    return report()


@situation(SERVING, "first `inference_mode`, then `no_grad`, then training", ALL)
def changing_modes() -> Report:
    model, reference = pair(prenorm())
    run = fast(model)
    with torch.inference_mode():
        close(run(example()), reference(example()))
    with torch.no_grad():
        close(run(example()), reference(example()))
    for one in (run, reference):
        one(example()).square().mean().backward()
    close([p.grad for p in model.parameters()], [p.grad for p in reference.parameters()], 1e-9)
    return report()


@situation(SERVING, "two compiled models in one process", ALL)
def two_models() -> Report:
    first, second = prenorm(seed=1), prenorm(seed=2, width=24)
    outputs(first, example())
    return outputs(second, example())


@situation(SERVING, "threads that call one model while its weights change", ALL)
def threads() -> Report:
    model, reference = pair(prenorm())
    run, x = fast(model), example()
    with torch.no_grad():
        run(x)
        scales = (1.0, 2.0, 3.0)
        allowed = []
        for scale in scales:
            reference.embed.weight.copy_(model.embed.weight * scale)
            allowed.append(reference(x))
    failures: list[BaseException] = []
    stop = threading.Event()
    original = model.embed.weight.detach().clone()

    def call() -> None:
        try:
            while not stop.is_set():
                with torch.no_grad():
                    run(x)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=call) for _ in range(3)]
    for worker in workers:
        worker.start()
    with torch.no_grad():
        for scale in scales * 10:
            model.embed.weight.copy_(original * scale)
    stop.set()
    for worker in workers:
        worker.join()
    assert not failures
    with torch.no_grad():
        close(run(x), allowed[-1])
    return report()


@situation(SERVING, "weights changed between calls", ALL)
def weights_change() -> Report:
    model, reference = pair(prenorm())
    run = fast(model)
    with torch.no_grad():
        for scale in (1.0, 0.5, 2.0):
            for one in (model, reference):
                one.embed.weight.mul_(scale)
            close(run(example()), reference(example()))
    return report()


@situation(SERVING, "writes through `.data`, after `normfuse.invalidate`", ALL)
def invalidated() -> Report:
    model, reference = pair(prenorm())
    run = fast(model)
    with torch.no_grad():
        run(example())
        for one in (model, reference):
            one.embed.weight.data.mul_(2.0)
        normfuse.invalidate(model)
        close(run(example()), reference(example()))
    return report()


def _cached(model: Any, lookups: Counter[str]) -> None:
    """Compile with Inductor and nothing in memory; compare, and count what its caches answered."""
    torch._dynamo.reset()
    counters.clear()
    reference = copy.deepcopy(model)
    with torch.no_grad():
        close(torch.compile(model, backend="normfuse")(example()), reference(example()))
    for cache in ("inductor", "aot_autograd"):
        lookups.update({k: n for k, n in counters[cache].items() if k.endswith(("_hit", "_miss"))})


@situation(
    SERVING,
    "a warm cache, and one loaded by `torch.compiler.load_cache_artifacts`, with other weights",
    ALL,
    slow=True,
)
def cache_artifacts() -> Report:
    cold, warm, loaded = Counter[str](), Counter[str](), Counter[str]()
    with fresh_cache():
        _cached(prenorm(seed=1), cold)
        artifacts = torch.compiler.save_cache_artifacts()
        _cached(prenorm(seed=2), warm)
    assert artifacts is not None
    with fresh_cache():
        torch.compiler.load_cache_artifacts(artifacts[0])
        _cached(prenorm(seed=3), loaded)
    assert cold == {"fxgraph_cache_miss": 1, "autograd_cache_miss": 1}
    assert warm == loaded == {"fxgraph_cache_hit": 1, "autograd_cache_hit": 1}
    return report()
