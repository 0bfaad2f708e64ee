"""Capturing a model on the meta device, and running the rules on what was captured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Node

from normfuse.capture.exported import export_model, program_of
from normfuse.checkpoint.outline import Outline, outline_of
from normfuse.folding import Folded
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.location import module_path
from normfuse.ir.program import Program
from normfuse.ir.region import norm_of, norms_in
from normfuse.ir.spec import NormSpec
from normfuse.options import Options
from normfuse.passes.pipeline import run_pipeline
from normfuse.passes.stored_values import shift_is_large
from normfuse.passes.work import Work
from normfuse.report import Report, Site

__all__ = ["BIASED", "LeftOut", "Outlined", "Small", "outlined"]

#: Operators of layers with a bias.
BIASED = (aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)

#: Gives the value of a small tensor of the model by its name; None where it is none, or large.
Small = Callable[[str], torch.Tensor | None]


LeftOut = Mapping[str, Collection[str]]


@dataclass
class Outlined:
    """A model after the rules: its steps while norms are norms still, and the norms with their records.

    ``large_shifts`` are the paths of norms with stored statistics that add more than what reads them in
    float32 should start its sum from. ``read`` names the weights that the captured call uses.
    """

    program: Program
    report: Report = field(default_factory=Report)
    folded: list[Folded] = field(default_factory=list)
    outline: Outline = field(default_factory=lambda: Outline((), None))
    norms: list[tuple[Site, NormSpec, int]] = field(default_factory=list)
    large_shifts: set[str] = field(default_factory=set)
    read: frozenset[str] = frozenset()

    @property
    def names(self) -> Mapping[str, str]:
        """The names of weights by those of the graph's inputs."""
        return {i.node.name: i.name for i in self.program.inputs if i.is_weight}

    def biases(self, paths: Iterable[str]) -> dict[str, Folded]:
        """The folded biases of these layers, by their paths."""
        folded, wanted = {one.node: one for one in self.folded}, set(paths)
        layers = (n for n in self.program.gm.graph.nodes if is_call(n, *BIASED) and module_path(n) in wanted)
        found = ((module_path(layer), bind(layer)["bias"]) for layer in layers)
        return {path: folded[bias] for path, bias in found if bias in folded}


class _Watch:
    """Looks at the graph when the rules have run and the norms are not written out yet."""

    def __init__(self, found: Outlined, left_out: LeftOut) -> None:
        self.found, self.left_out = found, left_out

    def stage(self, name: str, work: Work) -> None:
        if name == "lift":
            for site in work.report.sites:
                for rule in self.left_out.get(site.module, ()):
                    work.forbid(site, rule)
            self.found.large_shifts = {
                site.module for node, site in work.sites.items() if _is_large(node, work)
            }
        if name != "hoist":
            return
        gm = work.program.gm
        self.found.outline = outline_of(list(gm.graph.nodes))
        for node, region in norms_in(gm):
            width = int(node.meta["val"].shape[-1])
            self.found.norms.append((work.sites[node], region.spec, width))


def _is_large(node: Node, work: Work) -> bool:
    region = norm_of(node)
    if region is None or region.spec.statistics != "stored" or region.spec.out_dtype != torch.float32:
        return False
    return shift_is_large(node, region.operands(node), region.spec.eps or 0.0, work.program)


def outlined(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    options: Options,
    small: Small,
    left_out: LeftOut | None = None,
) -> Outlined:
    """The model, captured with these inputs and rewritten with these options.

    ``left_out`` names, by the paths of norms, the rules that leave them as they are.

    Raises:
        CaptureError: when the model cannot be captured.
    """
    program = program_of(export_model(model, (), inputs, None))
    program.values_later = program.centres_lookups = True
    program.inputs = [_with_value(one, small) for one in program.inputs]
    read = frozenset(one.name for one in program.inputs if one.is_weight and one.node.users)
    found = Outlined(program, read=read)
    found.report, found.folded = run_pipeline(program, options, _Watch(found, left_out or {}))
    return found


def _with_value(one: Any, small: Small) -> Any:
    value = small(one.name) if one.is_weight else None
    return one if value is None else replace(one, value=value)
