"""What a class of ``transformers`` has beside weights: a configuration, and tables that it computes."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch

from normfuse.checkpoint.architecture import quietly
from normfuse.errors import InputError, cause

__all__ = ["config_like", "tables_of"]

#: Entries that say what a configuration is of, and not what the model computes.
_OWN = {"architectures", "model_type", "transformers_version", "auto_map", "_name_or_path"}
_EPS = re.compile(r"(norm|ln).*_eps(ilon)?$|^norm_eps$")


def config_like(
    model_class: Any, given: Any, eps: float | None, more: Mapping[str, Any] | None = None
) -> Any:
    """A configuration of another class: the entries that both have, the eps of the norms, and ``more``.

    Raises:
        InputError: when the class does not take them.
    """
    known = model_class.config_class().to_dict()
    shared = {name: getattr(given, name) for name in known if name not in _OWN and hasattr(given, name)}
    shared |= {name: eps for name in known if eps is not None and _EPS.search(name)}
    shared["dtype"] = given.dtype
    try:
        with quietly():
            made = model_class.config_class(**copy.deepcopy(shared) | dict(more or {}))
    except Exception as error:
        raise InputError(
            f"{model_class.__name__} does not take the configuration of the folder: {cause(error)}"
        ) from error
    made.architectures = [model_class.__name__]
    return made


def tables_of(model: Any) -> dict[str, torch.Tensor]:
    """The buffers that no file holds, such as frequencies of positions, with the numbers that they hold.

    They are computed as they are when the class is loaded.
    """
    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        names = {name for name, _ in module.named_buffers()} & module._non_persistent_buffers_set
        if not names or list(module.children()) or list(module.parameters()):
            continue
        made = copy.deepcopy(module).to_empty(device="cpu")
        values = {name: made.get_buffer(name) for name in names}
        for value in values.values():
            value.fill_(torch.nan) if value.is_floating_point() else value.fill_(-1)
        with torch.no_grad():
            model._init_weights(made)
        known = {n: v for n, v in values.items() if v.is_floating_point() and not bool(v.isnan().any())}
        found |= {f"{path}.{name}".lstrip("."): value for name, value in known.items()}
    return found
