"""Why a rule runs on nothing of a program."""

from __future__ import annotations

from normfuse.ir.grad_mode import switches_gradients
from normfuse.passes.work import Work
from normfuse.report import Refusal

__all__ = ["refuse_mixed_modes", "refuse_training"]


def refuse_mixed_modes(work: Work) -> Refusal | None:
    """Two norms must not become one where only one of them may record gradients."""
    if not (work.program.grad_enabled and switches_gradients(work.program.gm.graph)):
        return None
    message = "some operators of the graph record gradients and others do not, so no two norms become one"
    return Refusal("grad_mode", message)


def refuse_training(work: Work) -> Refusal | None:
    """A weight and a bias that train must stay where the optimizer sees them."""
    if not work.program.grad_enabled:
        return None
    return Refusal(
        "trains", "gradients are recorded, and the weight and bias of the norm may train",
        remedy="call the model under torch.no_grad() or torch.inference_mode()",
    )  # fmt: skip
