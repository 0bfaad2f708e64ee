"""Which way each norm is run: ``normfuse.lower``.

Inductor fuses a norm with what stands beside it, which no kernel of its own does, so a kernel has to be asked
for: ``"auto"`` leaves every norm to Inductor until there are figures to the contrary.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import GraphModule, Node

from normfuse.errors import OptionError
from normfuse.ir.effects import Effects
from normfuse.ir.region import norms_in
from normfuse.lowering.inline import inline_all
from normfuse.lowering.kernel import NO_GPU, obstacle, write_kernel
from normfuse.report import Site

__all__ = ["lower"]


def lower(gm: GraphModule, sites: Mapping[Node, Site], way: str) -> None:
    """Write every norm out as operators, or as kernels where ``way`` is ``"triton"``; say so at its site.

    Raises:
        OptionError: where kernels were asked for and no norm is on a GPU.
    """
    if way == "triton":
        _write_kernels(gm, sites)
    inline_all(gm)


def _write_kernels(gm: GraphModule, sites: Mapping[Node, Site]) -> None:
    norms, effects = list(norms_in(gm)), Effects(gm.graph)
    reasons = {node: obstacle(node, region) for node, region in norms}
    if norms and all(reason.endswith(NO_GPU) for reason in reasons.values()):
        raise OptionError("normfuse.lower='triton' is not possible here: no norm of the graph is on a GPU")
    for node, region in norms:
        if not reasons[node]:
            write_kernel(gm, node, region, effects)
        if site := sites.get(node):
            site.lowering = f"inductor: {reasons[node]}" if reasons[node] else "triton"
