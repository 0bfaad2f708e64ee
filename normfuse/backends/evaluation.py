"""A model in evaluation mode, called with gradients on, gets what training gets, which is seldom meant."""

from __future__ import annotations

from normfuse.ir.program import Program
from normfuse.report import Report
from normfuse.warn import warn_user

__all__ = ["hint_at_no_grad"]

_HINT = (
    "the model is in evaluation mode, but gradients are recorded, so it is compiled as for training; call it "
    "under torch.no_grad() for the inference rewrite"
)
_said = False


def hint_at_no_grad(program: Program, report: Report) -> None:
    """Note it in the report, and warn once in a process."""
    global _said
    owners = {id(m): m for i in program.inputs if i.owner is not None and (m := i.owner()) is not None}
    if not (program.grad_enabled and report.sites and owners):
        return
    if any(module.training for module in owners.values()):
        return
    report.notes.append(_HINT)
    if not _said:
        _said = True
        warn_user(f"normfuse: {_HINT}")
