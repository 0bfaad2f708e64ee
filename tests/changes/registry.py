"""Ways to change what a compiled model holds, each with what its next call answers.

A way is a function that changes weights or statistics of a :class:`~tests.changes.models.Network`. After it
the compiled model has to answer as the model itself does; the few that leave no trace say what helps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.changes.models import Network

__all__ = ["WAYS", "Way", "page", "way"]

Change = Callable[[Network], None]


@dataclass(frozen=True)
class Way:
    """``remedy`` is empty where the change is seen."""

    area: str
    name: str
    change: Change
    remedy: str = ""


WAYS: list[Way] = []


def way(area: str, name: str, remedy: str = "") -> Callable[[Change], Change]:
    """Register a way."""

    def register(change: Change) -> Change:
        WAYS.append(Way(area, name, change, remedy))
        return change

    return register


_HEADER = """\
# Weights that change

A folded weight is made of the model's own, which may change at any time, by whatever writes to memory. Each
row is a way to do so and a test (`tests/changes`): a model with LayerNorms that became RMSNorms and with
BatchNorms that were folded is called, changed, and called again, more than once, and its answers are
compared with those of the model itself in float64. Models that several processes share (DDP, FSDP,
collectives) have tests of their own in `tests/distributed`.

Three guards look at every call, each without the others:

- the tensor: its identity, version counter, address, dtype, shape and strides;
- what its memory holds: all of a vector or of a table of statistics, 8 words all over a larger weight (8
  others at the next call, the same after 64), 1,024 where another compiled graph used the weights in between,
  everything whenever a graph is compiled;
- the writers that raise no version counter and can be told of: optimizers, collectives, memory that is filled
  anew under a preserved counter.

All of a graph's weights are compared in one call of a C function, which takes 0.1 to 0.2 microseconds a
weight on one core of a server processor, and 0.8 where other work has emptied the caches. Where nothing was
compiled by Inductor, or PyTorch holds its tensors in a way that the function does not know, Python compares
them in two to three times that.

On an accelerator contents are compared where another graph used the weights in between and whenever a graph
is compiled, since every comparison waits for the device; at each call there is only the batch counter of
PyTorch's own norms.

"""


def page() -> str:
    """The text of ``docs/changing-weights.md``."""
    areas = dict.fromkeys(w.area for w in WAYS)
    blocks = []
    for area in areas:
        rows = [
            f"| {w.name} | {'not seen: ' + w.remedy if w.remedy else 'right'} |"
            for w in WAYS
            if w.area == area
        ]
        blocks.append("\n".join([f"## {area}", "", "| change | the next call |", "|---|---|", *rows]))
    return _HEADER + "\n\n".join(blocks) + "\n"
