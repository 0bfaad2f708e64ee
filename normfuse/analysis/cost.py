"""Whether converting a stream while gradients are recorded saves more than it costs.

    saved = a * sum over converted norms of the bytes of their input
    spent = b * sum over changed, trainable weights of their bytes

with the device's own ``a`` and ``b``, see :mod:`normfuse.analysis.step_costs`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from normfuse.analysis.centring import Decision
from normfuse.analysis.plan import leaves_of
from normfuse.analysis.step_costs import step_costs
from normfuse.analysis.time_share import bytes_of
from normfuse.analysis.weights import WeightValues
from normfuse.ir.sizes import tensor_of

__all__ = ["Traffic", "training_traffic"]


@dataclass(frozen=True)
class Traffic:
    """What each training step saves and spends, in one unit."""

    saved: float
    spent: float
    unit: str = ""

    @property
    def pays(self) -> bool:
        return self.saved > self.spent or self.spent == 0


def training_traffic(decision: Decision, weights: WeightValues) -> Traffic:
    """What a decision would save and cost at every step."""
    changed = {
        leaf.node for plans in decision.plans.values() for _, plan in plans for leaf in leaves_of(plan)
    }
    trained = [node for node in changed if weights.records_gradients(node)]
    sources = [node.all_input_nodes[0] for node in decision.converted]
    saved = sum(step_costs(_device_of(node)).saved * bytes_of(node) for node in sources)
    spent = sum(step_costs(_device_of(node)).spent * bytes_of(node) for node in trained)
    return Traffic(saved, spent, next((step_costs(_device_of(node)).unit for node in sources), ""))


def _device_of(node: Node) -> torch.device:
    value = tensor_of(node)
    return torch.device("cpu") if value is None else value.device
