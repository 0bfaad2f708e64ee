"""Which way each norm is run: ``normfuse.lower``.

Inductor's operators are the first way, and the answer wherever nothing else is known to be faster: it fuses
a norm with what stands beside it. On a GPU that is here ``"auto"`` measures every way that there is for a
norm, in training with its gradients, and takes the fastest; on all other devices it stands for Inductor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.fx import Node

from normfuse.errors import OptionError
from normfuse.ir.grad_mode import gradient_regions, switches_gradients
from normfuse.ir.location import described
from normfuse.ir.program import Program
from normfuse.ir.region import NormRegion, norms_in
from normfuse.ir.sizes import tensor_of
from normfuse.kernels.device import HAS_TRITON, runs_kernels
from normfuse.lowering.deferred import DEFERRED
from normfuse.lowering.inline import inline_all
from normfuse.lowering.kernel import ADD_NORM, KERNEL
from normfuse.lowering.measure import INDUCTOR, can_measure, fastest
from normfuse.lowering.product import ADD_PRODUCT, PRODUCT
from normfuse.lowering.provider import Provider
from normfuse.lowering.readers import products_behind
from normfuse.lowering.tensors import Tensors, addends
from normfuse.options import Options
from normfuse.report import Site
from normfuse.torch_compat import plain_size

__all__ = ["LOWER", "lower"]

#: Under this name a site may be kept from every way but Inductor's.
LOWER = "lower"
#: Who is asked, in this order, for each value of the option.
_WAYS: dict[str, tuple[Provider, ...]] = {
    "inductor": (),
    "triton": (ADD_NORM, KERNEL),
    "deferred": (DEFERRED, ADD_PRODUCT, PRODUCT),
    "auto": (ADD_NORM, KERNEL, DEFERRED, ADD_PRODUCT, PRODUCT),
}


def lower(
    program: Program,
    sites: Mapping[Node, Site],
    options: Options,
    may: Callable[[Node], bool] = lambda _: True,
) -> dict[Node, Node]:
    """Write every norm out as the way that runs it says, and tell its site which, and why.

    ``may`` says whether a norm may be run by anything but Inductor. Returns what has the values of the nodes
    that are gone; a norm that is not there has none any more.

    Raises:
        OptionError: where kernels were asked for and no norm is on a GPU.
    """
    gm, replaced = program.gm, dict[Node, Node]()
    norms = norms_in(gm) if _WAYS[options.lower] else []
    if norms and options.lower == "triton" and all(_is_elsewhere(*norm) for norm in norms):
        what = "no norm of the graph is on a GPU" if HAS_TRITON else "the package triton is not installed"
        raise OptionError(f"normfuse.lower='triton' is not possible here: {what}")
    for node, region in norms:
        chosen, why = _choice(program, node, region, options) if may(node) else (None, "")
        if chosen is not None:
            replaced |= chosen.write(gm, node, region)
        if site := sites.get(node):
            runs = INDUCTOR if chosen is None else chosen.runs
            site.lowering = f"{runs}: {why}" if why else runs
    return _settled(replaced | inline_all(gm))


def _is_elsewhere(node: Node, region: NormRegion) -> bool:
    return not runs_kernels(_around(node, region)[1])


def _around(node: Node, region: NormRegion) -> tuple[Tensors, torch.device]:
    tensors = Tensors.of(node, region)
    return tensors, torch.device("cpu") if tensors.source is None else tensors.source.device


def _choice(
    program: Program, node: Node, region: NormRegion, options: Options
) -> tuple[Provider | None, str]:
    """What runs a norm, None for Inductor, and why."""
    source = tensor_of(region.operands(node).source)
    if options.lower == "auto" and (default := _default(node, source)) is not None:
        return None, default
    if program.grad_enabled and (reason := _switched(node, region)):
        return None, reason
    tensors, device = _around(node, region)
    ways, refusals = _WAYS[options.lower], dict[str, str]()
    for way in ways:
        refusals[way.name] = way.supports(region.spec, tensors, device)
    apt = {way.name: way for way in ways if not refusals[way.name]}
    if not apt:
        return None, next(iter(refusals.values()))
    if options.lower != "auto":
        return next(iter(apt.values())), ""
    name, why = fastest(node, apt, options.mode, options.inductor, program.grad_enabled)
    return apt.get(name), why


def _switched(node: Node, region: NormRegion) -> str:
    """Why gradients keep a norm from becoming one with what it reads or what reads it."""
    if not switches_gradients(node.graph):
        return ""
    operands, regions = region.operands(node), gradient_regions(node.graph)
    one = {node} if addends(operands) is None else {node, operands.source}
    for product in products_behind(node)[0]:
        one |= {product.node, *product.path}
    is_same = len({regions[part] for part in one}) == 1
    return "" if is_same else f"gradients are switched on or off beside {described(node)}"


def _default(node: Node, source: torch.Tensor | None) -> str | None:
    """Why Inductor runs a norm of ``source`` unmeasured; empty where nothing else could."""
    if source is None or source.device.type == "cpu":
        return ""
    if not can_measure(source.device):
        return f"there is no device here to measure on as {described(node)} needs"
    if not all(isinstance(plain_size(size), int) for size in source.shape):
        return f"the sizes of {described(node)} are open, and what is fastest depends on them"
    return None


def _settled(replaced: Mapping[Node, Node]) -> dict[Node, Node]:
    """What was replaced by something that was replaced in its turn."""
    found = dict(replaced)
    for old, new in replaced.items():
        while new in replaced:
            new = replaced[new]
        found[old] = new
    return found
