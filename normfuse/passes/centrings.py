"""The centrings of a stream: one where weights cannot do it, and none of those that the model wrote."""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.centring import Decision
from normfuse.analysis.channel_map import Centre
from normfuse.analysis.savings import cost_of_centring
from normfuse.analysis.stream import Stream
from normfuse.ir.calls import bind
from normfuse.passes.place import Placement
from normfuse.passes.work import Work

__all__ = ["settle_centrings"]


def settle_centrings(stream: Stream, decision: Decision, placement: Placement, work: Work) -> None:
    """Put the explicit centring into the graph, and take out those that the model wrote."""
    _drop_own(stream, decision, placement)
    if decision.cut is not None:
        _centre_explicitly(stream, decision, placement, work)


def _drop_own(stream: Stream, decision: Decision, placement: Placement) -> None:
    """Let what reads a centring that the model wrote read what it centred, which has no mean any more."""
    for value in decision.centred:
        if value in stream.centrings and value != decision.cut and value not in stream.raw:
            node = value[0]
            node.replace_all_uses_with(bind(node)["self"])
            placement.erase(node)


def _centre_explicitly(stream: Stream, decision: Decision, placement: Placement, work: Work) -> None:
    """One subtraction at the cut; where somebody wants the mean, only those that carry it on see it."""
    assert decision.cut is not None
    node, axis = decision.cut
    readers: set[Node] | None = None
    if decision.cut in stream.raw:
        written = [v for v in decision.centred if v not in stream.raw]
        readers = {v[0] for v in written if decision.cut in stream.operands.get(v, ())}
    placement.after(node, axis, Centre(), readers)
    work.report.centrings += 1
    work.report.spent += cost_of_centring(node)
