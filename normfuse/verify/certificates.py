"""Complete the certificates of a report: weights before and after, measured errors, versions."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence

import torch
from torch import Tensor

from normfuse.folding import Folded
from normfuse.ir.program import Program
from normfuse.report import Report

__all__ = ["complete_certificates", "digest"]


def digest(value: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes in row-major order."""
    plain = value.detach().cpu().contiguous()
    code = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode())
    if plain.numel():
        code.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return code.hexdigest()


def complete_certificates(report: Report, program: Program, folded: Sequence[Folded]) -> None:
    """Add hashes of the changed weights, the errors of each site and the versions, in place.

    ``program`` and ``folded`` are what the pipeline returned; folded weights are computed once more.
    """
    weights = program.weights
    after: dict[str, list[str]] = {}
    for one in folded:
        made = digest(one.recipe.compute([weights[s].value for s in one.sources]))
        for source in one.sources:
            after.setdefault(weights[source].name, []).append(made)
    before = {i.name: i.value for i in weights.values()}
    known: dict[str, str] = {}
    for site in report.sites:
        for _, certificate in site.rewrites:
            for weight in certificate["weights"]:
                name = weight["name"]
                known.setdefault(name, digest(before[name]))
                weight |= {"before": known[name], "after": sorted(after.get(name, []))}
            certificate |= {"errors": dict(site.errors), "versions": _versions()}


def _versions() -> dict[str, str]:
    import normfuse

    return {
        "normfuse": normfuse.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
