"""What ``normfuse.policy`` leaves of what could be done, where it asks that a change pays."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from normfuse.analysis.centring import Decision
from normfuse.analysis.cost import training_traffic
from normfuse.analysis.weights import WeightValues
from normfuse.passes.work import Work
from normfuse.report import Refusal

__all__ = ["apply_policy", "refuse_mapping"]

_ASK = 'ask for it with policy="convert"'


def apply_policy(decision: Decision, work: Work, weights: WeightValues) -> None:
    """Withdraw what costs more at each step than it saves.

    A table is not copied; what the policy leaves out there is the centring behind it.
    """
    if work.options.converts(work.program.grad_enabled):
        return
    remedy = f"one centring after the lookup would do; {_ASK}"
    for node, refusal in decision.refusals.items():
        if refusal.code == "table_copy":
            decision.refusals[node] = replace(refusal, remedy=remedy)
    if work.program.grad_enabled:
        _keep_what_pays(decision, weights)


def _keep_what_pays(decision: Decision, weights: WeightValues) -> None:
    traffic = training_traffic(decision, weights)
    if traffic.pays:
        return

    def refusal(norm: Node) -> Refusal:
        return Refusal(
            "does_not_pay",
            f"centring the weights at every training step would take {traffic.spent:.3g} {traffic.unit} "
            f"to save {traffic.saved:.3g}", norm.name,
            _ASK,
        )  # fmt: skip

    decision.withdraw(refusal)


def refuse_mapping(work: Work) -> Refusal | None:
    """Why no weights are mapped to other sizes, if so: they would be at every step, whatever that saves."""
    if work.options.converts(work.program.grad_enabled):
        return None
    return Refusal("does_not_pay", "the weights would be mapped at every training step", remedy=_ASK)
