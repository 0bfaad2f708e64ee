"""The LayerNorms of a model whose values have no mean, since the weights that write them have none.

    mean(x) = 0    =>    LN(x) = RMS(x)

That is what :mod:`normfuse.passes.recentre` proves of a graph whose weights it centres. Where it would change
none of the weights that a norm rests on, the graph is centred as it is, and so are the modules that it was
captured from. The centring that it puts behind the lookup of a tied table can stand behind the module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.fx import Node

from normfuse.in_place.held import Held, Place
from normfuse.in_place.parts import Parts
from normfuse.in_place.shown import Made, Shown, shown
from normfuse.ir.calls import CASTS, aten, is_call
from normfuse.ir.location import module_path
from normfuse.ir.program import Program
from normfuse.ir.rounding import equals_to_rounding
from normfuse.options import Options
from normfuse.report import Site

__all__ = ["centred_parts"]

Kind = TypeVar("Kind", bound=nn.Module)


def centred_parts(
    model: nn.Module,
    programs: Iterable[Program],
    held: Held,
    values: Mapping[Place, torch.Tensor],
    options: Options,
) -> Parts:
    """The norms that are RMSNorms in every call, and the lookups that need a centring for that.

    ``programs`` are all calls of the model, which holds ``values`` in the place of some weights. A norm
    without a weight stays: nothing in a state dict would say what it asks of other weights.
    """
    ways = [_way(_holding(program, values), held, options) for program in programs]
    if any("" in way.calls for way in ways):
        return Parts()  # somebody calls a norm or reads a table, and nothing says which module that is
    tables = {path: part for path, part in _named(model, nn.Embedding).items() if part.max_norm is None}
    lookups = _in_every_call(tables, ways, lambda way: way.lookups)
    norms = _in_every_call(
        {path: part for path, part in _named(model, nn.LayerNorm).items() if part.elementwise_affine},
        ways,
        lambda way: [path for path, behind in way.norms if behind <= lookups.keys()],
    )
    needed = {path for way in ways for norm, behind in way.norms if norm in norms for path in behind}
    return Parts(norms, {path: part for path, part in lookups.items() if path in needed})


@dataclass
class _Way:
    """One call of the model, after its weights have changed.

    Attributes:
        calls: how often it runs each module that is a norm or a lookup.
        lookups: the module of every lookup that is centred explicitly for all who read it.
        norms: the module of every norm that was converted while nothing it rests on had to change, and the
            modules behind whose lookups a centring has to stand for that.
    """

    calls: Counter[str]
    lookups: list[str]
    norms: list[tuple[str, set[str]]]


def _named(model: nn.Module, kind: type[Kind]) -> dict[str, Kind]:
    """The modules of exactly this class, by all their names."""
    return {path: part for path, part in model.named_modules(remove_duplicate=False) if type(part) is kind}


def _in_every_call(
    parts: Mapping[str, Kind], ways: Iterable[_Way], good: Callable[[_Way], list[str]]
) -> dict[str, Kind]:
    """The modules that are called, and each time in a good way."""
    called, other = set[Kind](), set[Kind]()
    for way in ways:
        counts = Counter(good(way))
        for path in way.calls.keys() & parts.keys():
            (called if counts[path] == way.calls[path] else other).add(parts[path])
    return {path: part for path, part in parts.items() if part in called - other}


def _holding(program: Program, values: Mapping[Place, torch.Tensor]) -> Program:
    """The same program with other entries in its weights."""

    def changed(value: torch.Tensor) -> torch.Tensor:
        place = Place.of(value)
        return values[place].to(value.device) if place in values else value

    inputs = [replace(one, value=changed(one.value)) if one.is_weight else one for one in program.inputs]
    return replace(program, inputs=inputs)


def _way(program: Program, held: Held, options: Options) -> _Way:
    calls, after = Counter(_modules(program)), shown(program, held, options)
    nodes = {node.name: node for node in program.gm.graph.nodes}
    norms: list[tuple[str, set[str]]] = []
    cuts = set[Node]()
    for site in after.report.sites:
        if site.action == "converted" and _is_settled(site, after):
            behind = [nodes.get(name) for name in _certificate(site)["centred_explicitly"]]
            cuts |= {node for node in behind if node is not None}
            norms.append((site.module, {_path(node) for node in behind}))
    return _Way(calls, [_path(node) for node in cuts], norms)


def _modules(program: Program) -> Iterator[str]:
    """The module of each norm and lookup that the program, or a graph inside of it, runs."""
    for node in program.gm.graph.nodes:
        if is_call(node, aten.layer_norm.default, aten.embedding.default):
            yield module_path(node)
    for inner in program.inner:
        yield from _modules(inner.program)


def _path(node: Node | None) -> str:
    """The module of a lookup that nobody reads but one centring; no name of any other value."""
    if node is None or not is_call(node, aten.embedding.default):
        return ""
    readers, wide = [*node.users], node
    if len(readers) == 1 and is_call(readers[0], *CASTS):
        wide, readers = readers[0], [*readers[0].users]
    means = [reader for reader in readers if is_call(reader, aten.mean.dim)]
    rest = [reader for reader in readers if is_call(reader, aten.sub.Tensor)]
    if len(means) != 1 or len(readers) != 2:
        return ""
    is_centred = [one.args for one in rest] == [(wide, *means)] and [*means[0].users] == rest
    return module_path(node) if is_centred else ""


def _is_settled(site: Site, after: Shown) -> bool:
    """Whether no weight that a converted norm rests on had to change for it."""
    names = {weight["name"] for weight in _certificate(site)["weights"]}
    known = {source: one.name for source, one in after.program.weights.items()}
    return all(
        _is_idle(made)
        for folded, made in after.folded
        if not names.isdisjoint(known.get(source) for source in folded.sources)
    )


def _certificate(site: Site) -> dict[str, Any]:
    return next(one.certificate for one in site.rewrites if one.rule == "recentre")


def _is_idle(made: Made) -> bool:
    """Whether a fold gives what one of its sources holds, and what else it is made of are ones."""
    value = made.compute({}, torch.float64)
    hosts = [t for t in made.tensors if t.shape == value.shape and equals_to_rounding(t.detach(), value)]
    return any(all(t is host or bool((t == 1).all()) for t in made.tensors) for host in hosts)
