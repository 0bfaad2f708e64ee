"""Whether the modules that ``normfuse.json`` names are what a rewrite changes, before any of them is changed.

replaced    a norm over the last axis; what it loses of a weight or bias does nothing: w = 1, b = 0
removed     a norm with stored statistics that returns what it is given, but for a bias that a layer takes
centred     an embedding
biased      a linear layer or a convolution without a bias
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from normfuse.checkpoint.changes import Changes, NormModule
from normfuse.checkpoint.expressible import LAYERS, neutral_entries
from normfuse.checkpoint.stored import answers, holds_statistics
from normfuse.errors import InputError

__all__ = ["check_changes"]


def check_changes(model: nn.Module, changes: Changes, biases: Mapping[str, Tensor]) -> None:
    """Refuse changes that no rewrite makes; ``biases`` are the new ones by the paths of their layers.

    Raises:
        InputError: naming the first module.
    """
    for path, norm in changes.norms.items():
        _check(path, _fault_of_norm(model.get_submodule(path), norm))
    for path in changes.removed:
        _check(path, _fault_of_removed(model.get_submodule(path), biases.values()))
    for path in changes.centred:
        is_lookup = isinstance(model.get_submodule(path), nn.Embedding)
        _check(path, "" if is_lookup else "takes the mean from its result, and it is no embedding")
    for path, bias in biases.items():
        _check(path, _fault_of_bias(model.get_submodule(path), bias))


def _check(path: str, fault: str) -> None:
    if fault:
        raise InputError(f"normfuse.json is not that of these weights: of {path} it {fault}; rewrite again")


def _fault_of_norm(module: nn.Module, norm: NormModule) -> str:
    neutral = None if list(module.children()) else neutral_entries(module, norm)
    if neutral is None:
        return f"makes a norm of width {norm.width}, and it is none"
    for name, entry, kept in (("weight", neutral, norm.has_weight), ("bias", 0.0, norm.has_bias)):
        held = getattr(module, name, None)
        if kept and (held is None or (name == "weight" and neutral != 1.0)):
            return f"keeps the {name}, which is none of a plain norm"
        if not kept and held is not None and not bool((held == entry).all()):
            return f"leaves out the {name}, which does something"
    return ""


def _fault_of_removed(module: nn.Module, biases: Iterable[Tensor]) -> str:
    if not holds_statistics(module):
        return "removes a module that is no norm with stored statistics"
    made = copy.deepcopy(module).float().eval()
    bias: Tensor | None = getattr(made, "bias", None)
    if bias is not None and any(b.shape == bias.shape and torch.equal(b.float(), bias) for b in biases):
        bias.data.zero_()  # what a layer adds now
    dtype = module.get_buffer("running_mean").dtype
    return "" if _does_nothing(made, dtype) else "removes a norm that does something"


def _does_nothing(module: nn.Module, dtype: torch.dtype) -> bool:
    """To the precision of the statistics, whose variance of ``1 - eps`` may have been rounded."""
    rtol = torch.finfo(dtype).eps + 1e-5
    return any(torch.allclose(y, x, rtol=rtol, atol=1e-6) for x, y in answers(module))


def _fault_of_bias(module: nn.Module, bias: Tensor) -> str:
    if not isinstance(module, LAYERS) or module.bias is not None:
        return "adds a bias, and it is no layer without one"
    if bias.shape != module.weight.shape[:1]:
        return f"adds a bias of the shape {tuple(bias.shape)}, which is not that of its outputs"
    return ""
