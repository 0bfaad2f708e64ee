"""A rewritten graph as Inductor takes it: without tensors in it, with its folded weights as inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from normfuse.backends.check import check_output
from normfuse.backends.dynamo import hand_on_marks
from normfuse.capture.autocasting import is_autocast_enabled
from normfuse.folding import Asked, Folded, Premise, Slot, Slots, can_watch
from normfuse.folding.whole import fold
from normfuse.ir.program import Program, Role
from normfuse.passes.collector import collector_at_rest
from normfuse.passes.lift_constants import lift_constants
from normfuse.report import Report
from normfuse.torch_compat import FakeTensorMode

__all__ = ["Ready", "RewrittenGraph", "check_rewritten", "copied_bytes", "fake_of", "is_watched", "ready"]


@dataclass(frozen=True)
class RewrittenGraph:
    """A Dynamo graph after the pipeline; ``wide`` is the original in float64, when it was asked for."""

    program: Program
    folded: list[Folded]
    report: Report
    fake_mode: FakeTensorMode
    wide: GraphModule | None = None

    @property
    def is_changed(self) -> bool:
        return any(site.action != "kept" or site.is_lowered for site in self.report.sites)


@dataclass(frozen=True)
class Ready:
    """A graph for Inductor: it takes the inputs, what ``slots`` folds of them, and ``constants``."""

    module: GraphModule
    slots: Slots
    constants: tuple[torch.Tensor, ...] = ()


@collector_at_rest()
def ready(gm: GraphModule, rewritten: RewrittenGraph) -> Ready:
    """The rewritten graph, or the one that Dynamo made where nothing was rewritten.

    What Dynamo made does not say the casts of an autocast around the call, which is off while a graph of ours
    is compiled and runs.
    """
    if not rewritten.is_changed and not is_autocast_enabled():
        return Ready(gm, Slots(()))
    program, folded = rewritten.program, rewritten.folded
    places = {given.node: place for place, given in enumerate(program.inputs)}
    asked = [_asked(premise, places) for premise in program.premises]
    slots = Slots([_slot(one, program, places) for one in folded], asked)
    module, added, constants = lift_constants(program.gm)
    hand_on_marks(gm, module, [*(one.node for one in folded), *added])
    return Ready(module, slots, tuple(constants))


def check_rewritten(
    gm: GraphModule, rewritten: RewrittenGraph, example_inputs: Sequence[Any], folded: Sequence[torch.Tensor]
) -> None:
    if rewritten.wide is not None and rewritten.is_changed:
        check_output(gm, rewritten.wide, rewritten.program.gm, example_inputs, folded)


def _slot(one: Folded, program: Program, places: Mapping[Node, int]) -> Slot:
    owners = [program.inputs[places[s]].owner for s in one.sources]
    watched = {i: owners[i] for i, s in enumerate(one.sources) if is_watched(s, program)}
    return Slot(one.recipe, [places[s] for s in one.sources], [o for o in owners if o is not None], watched)


def is_watched(source: Node, program: Program) -> bool:
    """Whether a batch norm in training may update a source unseen, be it in a corner of a larger buffer."""
    found = program.weights[source]
    if source in program.statistics:
        return True
    owner = None if found.owner is None else found.owner()
    is_buffer = found.role is Role.BUFFER and found.value.is_floating_point()
    return is_buffer and can_watch(found.value, owner)


def _asked(premise: Premise, places: Mapping[Node, int]) -> Asked:
    return Asked(premise, tuple(tuple(places[s] for s in sources) for sources in premise.sources))


def copied_bytes(rewritten: RewrittenGraph, example_inputs: Sequence[Any]) -> int:
    """What the folded weights will hold beside the originals: nothing where a source is one already."""
    places = {i.node: p for p, i in enumerate(rewritten.program.inputs)}
    folded = [(one, [example_inputs[places[s]] for s in one.sources]) for one in rewritten.folded]
    return sum(one.size for one, sources in folded if not fold(one.recipe, sources)[1])


def fake_of(tensor: Any, fake_mode: FakeTensorMode) -> Any:
    """A stand-in of fixed size, whatever the user asked for the sizes of inputs."""
    return fake_mode.from_tensor(tensor, static_shapes=True)
