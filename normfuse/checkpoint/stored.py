"""Norms with stored statistics whose work weights do: modules that do nothing, in both forms of a folder.

    A(W a) = (D W) a + shift,    shift = A(0)

In the loaded model the norm is an identity and the layer has the shift as its bias. For ``transformers``
alone the norm stays, and does nothing but add the shift, which is its bias then:

    weight = 1, running_mean = 0, running_var = 1 - eps
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn

from normfuse.checkpoint.outlines import Outlined, Small
from normfuse.folding import Folded
from normfuse.report import Site

__all__ = ["answers", "holds_statistics", "homes_of", "neutral_statistics", "removed_of"]

_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def removed_of(found: Outlined, model: nn.Module) -> tuple[tuple[str, ...], dict[str, str]]:
    """The paths of norms that are gone from the graph, and for those that must stay the reason."""
    removed: list[str] = []
    refused: dict[str, str] = {}
    left = {site.module for site, _, _ in found.norms}
    for site in _gone(found):
        try:
            module = model.get_submodule(site.module)
        except AttributeError:
            refused[site.module] = "it is no module"
            continue
        if not site.module or not holds_statistics(module):
            refused[site.module] = "it is computed inside a module that does more"
        elif site.module in left:
            refused[site.module] = "it is called several times, and stays at some of its places"
        elif site.module in found.large_shifts:
            refused[site.module] = "its shift is large, and float32 keeps more precision by adding it behind"
        else:
            removed.append(site.module)
    return tuple(dict.fromkeys(removed)), refused


def _gone(found: Outlined) -> Iterable[Site]:
    return (site for site in found.report.sites if site.rewrites and not site.becomes)


def homes_of(found: Outlined, biased: Iterable[str], removed: Iterable[str], small: Small) -> dict[str, str]:
    """By the path of a layer that gets a bias, the norm behind it that has a place for it: its own bias.

    The new bias has to be what the norm returns for zeros, entry by entry.
    """
    homes: dict[str, str] = {}
    sites = {site.module: site for site in _gone(found)}
    for layer, one in found.biases(biased).items():
        values = [small(found.names[source.name]) for source in one.sources]
        paths = [p for p in removed if any(found.names[s.name] == f"{p}.running_mean" for s in one.sources)]
        if len(paths) == 1 and paths[0] not in homes.values() and all(v is not None for v in values):
            shift = _shift(sites[paths[0]], small)
            if shift is not None and _is(one, [v for v in values if v is not None], shift):
                homes[layer] = paths[0]
    return homes


def _shift(site: Site, small: Small) -> torch.Tensor | None:
    """What the norm returns for zeros; None where it has no bias."""
    names = ("weight", "bias", "running_mean", "running_var")
    held = [small(f"{site.module}.{name}") for name in names]
    weight, bias, mean, variance = (None if v is None else v.double() for v in held)
    if bias is None or mean is None or variance is None:
        return None
    factor = (variance + float(site.spec["eps"])).rsqrt()
    shift: torch.Tensor = bias - mean * (factor if weight is None else factor * weight)
    return shift


def _is(one: Folded, values: list[torch.Tensor], shift: torch.Tensor) -> bool:
    made = replace(one.recipe, dtype=torch.float64).compute(values)
    if made.shape != shift.shape:
        return False
    return bool(((made - shift).abs() <= 1e-12 * (made.abs().max() + shift.abs())).all())


def neutral_statistics(module: nn.Module, eps: float) -> Mapping[str, float] | None:
    """The entries with which a norm returns what it is given; None where it does not."""
    entries = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - eps}
    made = copy.deepcopy(module).to_empty(device="cpu").float().eval()
    held = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    with torch.no_grad():
        for name, value in held.items():
            value.fill_(entries.get(name, 0.0))
    if any(torch.allclose(y, x, rtol=1e-5, atol=1e-6) for x, y in answers(made)):
        return {name: entries[name] for name in held if name in entries}
    return None


def holds_statistics(module: nn.Module) -> bool:
    """Whether a module holds what a norm with stored statistics does, and nothing else."""
    tensors = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    return not list(module.children()) and {"running_mean"} <= tensors <= _TENSORS


def answers(module: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random inputs of the shapes that a norm over channels takes, each with what is made of it."""
    channels = module.get_buffer("running_mean").numel()
    for shape in ((2, channels, 3, 3), (2, channels, 3), (2, channels)):
        x = torch.randn(shape)
        try:
            with torch.no_grad():
                y = module(x)
        except (RuntimeError, ValueError):
            continue
        if isinstance(y, torch.Tensor) and y.shape == x.shape:
            yield x, y
