"""CRMSNorm: values without a mean are stored in one coordinate less.

    RMS_eps(W a + b) = E CRMS_eps(P W a + P b),    E P x = x where x has no mean

in the basis ``"drop_last"``, where P drops the last row and ``W E = W[:, :-1] - W[:, -1:]`` reads the result
(Jiang et al. 2023, arXiv 2305.14858, section 3.3). In ``"orthonormal"``, with U' for P, U for E and U'U = I,
the norm is an RMSNorm with ``eps' = eps d / (d - 1)`` and a gain of ``sqrt(d / (d - 1))``. Numerics class:
reassociated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

from torch.fx import Node

from normfuse.analysis.bases import AppendSum, DropLast, FromZeroMean, ToZeroMean
from normfuse.analysis.channel_map import Diagonal
from normfuse.analysis.plan import Maps
from normfuse.analysis.stream import Value, rms_axis
from normfuse.ir.location import described
from normfuse.ir.region import norm_of
from normfuse.ir.sizes import static_size
from normfuse.ir.spec import NormSpec
from normfuse.passes.basis import Basis
from normfuse.passes.change_basis import change_basis
from normfuse.passes.policy import refuse_mapping
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.work import Work
from normfuse.report import Refusal, Site

__all__ = ["COMPRESS", "compress"]


def compress(work: Work) -> None:
    """Store every stream that recentring left without a mean in d - 1 coordinates, where all of it can be."""
    reads = _reads(work)
    if work.options.crms_basis == "orthonormal":
        change_basis(work, COMPRESS, Basis(ToZeroMean(), reads, _orthonormal, keeps_lengths=True))
    else:
        change_basis(work, COMPRESS, Basis(DropLast(), reads, _drop_last))
    _tell_widths(work)
    for node, site in work.sites.items():
        if _waits(site) and COMPRESS.name not in (*site.rules, *site.refusals):
            site.refuse(_unusual(node), COMPRESS.name)
        site.refusal = site.refusal or site.refusals.get(COMPRESS.name)


def _tell_widths(work: Work) -> None:
    """Kernels go by vectors of eight numbers and more."""
    sizes = {_stored(n) for n, site in work.sites.items() if COMPRESS.name in site.rules}
    for size in sorted(size for size in sizes if size is not None and (size + 1) % 8 == 0):
        work.report.notes.append(
            f"values are stored in {size} coordinates instead of {size + 1}: fewer numbers, but no multiple "
            'of 8, and most kernels take longer over them; measure it, or ask for target="rms_norm"'
        )


def _stored(norm: Node) -> int | None:
    region = norm_of(norm)
    return None if region is None else static_size(region.operands(norm).source, region.spec.dims[0])


def _unusual(node: Node) -> Refusal:
    return Refusal(
        "unusual_form", f"the norm {described(node)} has an eps or an axis that no CRMSNorm has", node.name
    )


def _reads(work: Work) -> Callable[[Node], Value | None]:
    """What a norm reads that recentring has made the same with a mean and without."""
    orthonormal = work.options.crms_basis == "orthonormal"

    def reads(node: Node) -> Value | None:
        region = norm_of(node)
        if region is None or (region.spec.eps is None and orthonormal) or not _waits(work.sites[node]):
            return None
        return rms_axis(node)

    return reads


def _drop_last(core: NormSpec, channels: int) -> tuple[NormSpec, Maps]:
    return core.in_basis("drop_last"), (AppendSum(),)


def _orthonormal(core: NormSpec, channels: int) -> tuple[NormSpec, Maps]:
    ratio = channels / (channels - 1)
    assert core.eps is not None
    made = replace(core.in_basis("orthonormal"), eps=core.eps * ratio)
    return made, (Diagonal(sqrt(ratio)), FromZeroMean())


def _waits(site: Site) -> bool:
    return "recentre" in site.rules


COMPRESS = Rule(
    "compress",
    Numerics.REASSOCIATED,
    "RMS_eps(W a + b) = E CRMS_eps(P W a + P b),  E P x = x where x has no mean",
    "Jiang et al. 2023, arXiv 2305.14858, section 3.3",
    (
        "written without a mean: these weights write the values, or one map does",
        "read by norms alone: nothing else sees the values",
        "changed weights: each writer and reader has its own copy",
    ),
    run=compress,
    waits=_waits,
    targets=("crms_norm",),
    idle=refuse_mapping,
)
