"""A backend for measuring: Inductor on the same model without its norms, whose answers are wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from normfuse.backends.dynamo import capture, hand_on_marks
from normfuse.backends.inner import run_inner
from normfuse.freezing.constants import with_constants
from normfuse.freezing.tuning import TUNED, quiet
from normfuse.options import Options
from normfuse.passes.delete_norms import delete_norms
from normfuse.passes.lift_constants import lift_constants

__all__ = ["WithoutNorms"]


class WithoutNorms:
    """``torch.compile(model, backend=WithoutNorms())``; ``deleted`` counts the norms of all graphs.

    With ``freezes`` the weights are constants, and products are tuned.
    """

    def __init__(self, options: Options | None = None, freezes: bool = False) -> None:
        self.deleted = 0
        self._options = options or Options()
        self._freezes = freezes

    def __call__(self, gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        program, fake_mode = capture(gm, example_inputs)
        deleted = delete_norms(program)
        self.deleted += deleted
        module, added, constants = lift_constants(program.gm) if deleted else (gm, [], [])
        given = [*example_inputs, *constants]
        if self._freezes:
            return self._frozen(module, given, len(example_inputs))
        if not deleted:
            return run_inner(gm, example_inputs, self._options, {})
        hand_on_marks(gm, module, added)
        fakes = [fake_mode.from_tensor(tensor, static_shapes=True) for tensor in constants]
        compiled = run_inner(module, [*example_inputs, *fakes], self._options, {})
        held = tuple(constants)

        def run(*inputs: Any) -> Any:
            return compiled(*inputs, *held)

        return run

    def _frozen(self, module: GraphModule, given: Sequence[Any], own: int) -> Callable[..., Any]:
        """With every parameter, and what the graph held itself, as a constant."""
        values = {
            place: value for place, value in enumerate(given)
            if place >= own or isinstance(value, torch.nn.Parameter)
        }  # fmt: skip
        held, kept = with_constants(module, values)
        with torch.no_grad(), quiet(TUNED):
            compiled = run_inner(held, [given[place] for place in kept], self._options, TUNED)
        return lambda *inputs: compiled(*[inputs[place] for place in kept])
