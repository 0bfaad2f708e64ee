"""A backend for measuring: Inductor on the same model without its norms, whose answers are wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from normfuse.backends.dynamo import capture, hand_on_marks
from normfuse.backends.inner import run_inner
from normfuse.options import Options
from normfuse.passes.delete_norms import delete_norms
from normfuse.passes.lift_constants import lift_constants

__all__ = ["WithoutNorms"]


class WithoutNorms:
    """``torch.compile(model, backend=WithoutNorms())``; ``deleted`` counts the norms of all graphs."""

    def __init__(self, options: Options | None = None) -> None:
        self.deleted = 0
        self._options = options or Options()

    def __call__(self, gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        program, fake_mode = capture(gm, example_inputs)
        deleted = delete_norms(program)
        self.deleted += deleted
        if not deleted:
            return run_inner(gm, example_inputs, self._options, {})
        module, added, constants = lift_constants(program.gm)
        hand_on_marks(gm, module, added)
        fakes = [fake_mode.from_tensor(tensor, static_shapes=True) for tensor in constants]
        compiled = run_inner(module, [*example_inputs, *fakes], self._options, {})
        held = tuple(constants)

        def run(*inputs: Any) -> Any:
            return compiled(*inputs, *held)

        return run
