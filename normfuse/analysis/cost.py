"""Whether converting a stream while gradients are recorded saves more memory traffic than it causes.

    saved = 1/2 * sum over converted norms of the bytes of their input      (accelerators; 0 on a CPU)
    spent = 6 * sum over changed, trainable weights of their bytes

A weight that trains is centred anew at every step: read for the mean, read and written for the
difference, and the same again for its gradient. A LayerNorm and an RMSNorm read and write the same
values; what remains of the difference is about a tenth of the time of a LayerNorm, forward and
backward, which move five times its input (Fast-LLM, H100, bfloat16, 8192 x 4096: 253 against 226
microseconds). On CPUs the two took the same time within the noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from normfuse.analysis.centring import Decision
from normfuse.analysis.plan import Leaf, Plan, Rebuilt, Redirected
from normfuse.analysis.weights import WeightValues
from normfuse.ir.sizes import tensor_of
from normfuse.torch_compat import size_hint

__all__ = ["Traffic", "training_traffic"]

_SAVED_PASSES = 0.5
_SPENT_PASSES = 6


@dataclass(frozen=True)
class Traffic:
    """Bytes of memory traffic at each training step."""

    saved: float
    spent: float

    @property
    def pays(self) -> bool:
        return self.saved > self.spent or self.spent == 0


def training_traffic(decision: Decision, weights: WeightValues) -> Traffic:
    """What a decision would save and cost at every step."""
    changed = {leaf.node for plans in decision.plans.values() for _, plan in plans for leaf in _leaves(plan)}
    spent = sum(_bytes(node) for node in changed if weights.records_gradients(node))
    saved = sum(_bytes(node.all_input_nodes[0]) for node in decision.converted if not _is_on_cpu(node))
    return Traffic(_SAVED_PASSES * saved, _SPENT_PASSES * spent)


def _leaves(plan: Plan) -> Iterator[Leaf]:
    if isinstance(plan, Leaf):
        yield plan
    elif isinstance(plan, Rebuilt):
        for _, deeper in plan.operands:
            yield from _leaves(deeper)
    elif isinstance(plan, Redirected):
        yield from _leaves(plan.plan)


def _bytes(node: Node) -> float:
    value = tensor_of(node)
    if value is None:
        return 0.0
    count = 1.0
    for size in value.shape:
        count *= size_hint(size)
    return count * value.element_size()


def _is_on_cpu(node: Node) -> bool:
    value = tensor_of(node)
    return value is None or value.device.type == "cpu"
