"""Weights that the captured call does not use: other calls may, and write a stream or read a norm with them.

    RMS(C a) = LN(a) for the writers a that were seen, and not RMS(C a + b) = LN(a + b) for an unseen b

Such are the cross-attention of a decoder that is shown no encoder, and the token of masked patches.
"""

from __future__ import annotations

from typing import Any

from normfuse.checkpoint.case import Case
from normfuse.checkpoint.outlines import Outlined

__all__ = ["unseen_by", "unseen_of"]


def unseen_by(case: Case, found: Outlined) -> dict[str, str]:
    """By the paths of changed norms, a weight of their width that the call does not use."""
    unseen = unseen_of(case, found)
    widths = {site.module: width for site, _, width in found.norms if site.rewrites}
    for site in found.report.sites:  # of those that are gone
        if site.rewrites and not site.becomes:
            widths.setdefault(site.module, _channels(case.model, site.module))
    pairs = {path: next((n for n, sizes in unseen.items() if w in sizes), None) for path, w in widths.items()}
    return {path: name for path, name in pairs.items() if name is not None}


def unseen_of(case: Case, found: Outlined) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters that nothing in the graph reads, under any of their names."""
    seen = {name for one in found.read for name in case.names.same.get(one, (one,))}
    held = case.model.named_parameters()
    return {name: tuple(value.shape) for name, value in held if name not in seen}


def _channels(model: Any, path: str) -> int:
    try:
        return int(model.get_submodule(path).get_buffer("running_mean").numel())
    except AttributeError:
        return -1
