"""From what the rules did to a graph to modules that do the same, or the reason why there are none."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from normfuse.checkpoint.changes import Changes, NormModule
from normfuse.checkpoint.outlines import BIASED, Outlined
from normfuse.checkpoint.stored import removed_of
from normfuse.ir.calls import CASTS, aten, bind, is_call
from normfuse.ir.location import module_path
from normfuse.ir.spec import NormSpec

__all__ = ["LAYERS", "changes_of", "neutral_entries", "norms_of_biases"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def changes_of(found: Outlined, model: nn.Module) -> tuple[Changes, dict[str, str]]:
    """What would have to become of modules, and for each path where nothing can the reason.

    Whether the modules really do what the graph does is for a comparison to say.
    """
    norms: dict[str, NormModule] = {}
    refused: dict[str, str] = {}
    for site, spec, width in found.norms:
        if not site.rewrites:
            continue
        reason = _refuse(site.module, spec, model)
        made = None if reason else _module(spec, width)
        if made is not None and neutral_entries(model.get_submodule(site.module), made) is None:
            reason = "it does more than a norm over the last axis"
        if reason or norms.setdefault(site.module, made or norms[site.module]) != made:
            refused[site.module] = reason or "it is called several times, and becomes different norms"
    nodes = list(found.program.gm.graph.nodes)
    removed, stay = removed_of(found, model)
    centred = _centred(nodes, model) if found.report.centrings else ()  # a norm takes a mean as well
    return Changes(norms, centred, _biased(nodes, model), removed), refused | stay


def norms_of_biases(found: Outlined, paths: Iterable[str]) -> set[str]:
    """The norms whose biases or means went into new biases of these layers."""
    folded = found.biases(paths).values()
    names = {found.names[source.name] for one in folded for source in one.sources}
    ends = ("bias", "running_mean")
    changed = (site.module for site in found.report.sites if site.rewrites)
    return {path for path in changed if any(f"{path}.{end}" in names for end in ends)}


def _module(spec: NormSpec, width: int) -> NormModule:
    assert spec.eps is not None
    return NormModule(spec.kind, width, float(spec.eps), spec.has_scale, spec.has_shift)


def _refuse(path: str, spec: NormSpec, model: nn.Module) -> str:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return "it is no module"
    if not path or list(module.children()) or isinstance(module, LAYERS):
        return "it is computed inside a module that does more"
    usual = spec.kind in ("rms_norm", "layer_norm") and spec.dims == (-1,) and not spec.affine_dims
    plain = spec.groups == 1 and spec.divisor is None and spec.eps_mode == "inside"
    has_eps = spec.eps is not None and math.isfinite(spec.eps)
    if not (usual and plain and has_eps and spec.post_factor == 1 and spec.weight_offset == 0):
        return "what it becomes is no plain norm over the last axis"
    for name, has in (("weight", spec.has_scale), ("bias", spec.has_shift)):
        if has and not isinstance(getattr(module, name, None), nn.Parameter):
            return f"it has no parameter {name} of its own"
    return ""


def _centred(nodes: Iterable[Node], model: nn.Module) -> tuple[str, ...]:
    """The lookups whose results lose their mean explicitly."""
    lookups = (n for n in nodes if is_call(n, aten.embedding.default) and _loses_mean(n))
    paths = dict.fromkeys(map(module_path, lookups))
    return tuple(path for path in paths if isinstance(_find(model, path), nn.Embedding))


def _loses_mean(node: Node) -> bool:
    readers = [
        *node.users,
        *(reader for user in node.users if is_call(user, *CASTS) for reader in user.users),
    ]
    return any(is_call(reader, aten.mean.dim) for reader in readers)


def _biased(nodes: Iterable[Node], model: nn.Module) -> tuple[str, ...]:
    """The layers that have a bias in the graph only."""
    given = (n for n in nodes if is_call(n, *BIASED) and isinstance(bind(n)["bias"], Node))
    found = ((path, _find(model, path)) for path in dict.fromkeys(map(module_path, given)))
    return tuple(path for path, layer in found if isinstance(layer, LAYERS) and layer.bias is None)


def _find(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def neutral_entries(module: nn.Module, norm: NormModule) -> float | None:
    """The entry of a weight with which the original module does nothing after its core; None if unknown.

    A bias of zeros goes with it. Most norms multiply by the weight, some by one plus it.
    """
    # Beside values of this size no eps counts: that of the new norm may be another one.
    x = 1e3 * torch.linspace(-1, 2, 2 * norm.width, dtype=torch.float32).reshape(2, norm.width)
    cores = (F.rms_norm(x, (norm.width,), eps=0.0), F.layer_norm(x, (norm.width,), eps=0.0))
    for entry in (1.0, 0.0):
        with torch.no_grad():
            plain = _filled(module, entry)
            made = None if plain is None else _result(plain, x)
        if made is not None and any(torch.allclose(made, core, rtol=1e-4, atol=1e-5) for core in cores):
            return entry
    return None


def _result(module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """What a module makes of a value alone, where that is a value of the same shape."""
    try:
        made = module(x)
    except (RuntimeError, TypeError, ValueError):
        return None
    return made if isinstance(made, torch.Tensor) and made.shape == x.shape else None


def _filled(module: nn.Module, entry: float) -> nn.Module | None:
    """A copy of a norm on the CPU with this weight and no bias; None where it holds anything else."""
    names = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    if not names <= {"weight", "bias"}:
        return None
    made = copy.deepcopy(module).to_empty(device="cpu").float()
    for name, value in made.named_parameters():
        value.fill_(entry if name == "weight" else 0.0)
    return made
