"""A graph that is compiled with weights in it: those of the model that it was traced with, or of another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch.fx import GraphModule

from normfuse.backends import inner
from normfuse.backends.inner import without_autocast
from normfuse.backends.ready import Ready, fake_of
from normfuse.errors import NormfuseError, cause, is_strict
from normfuse.folding import BrokenPremiseError
from normfuse.folding.frozen import FrozenWeights
from normfuse.folding.store import Owner
from normfuse.freezing.call import FrozenCall
from normfuse.freezing.constants import let_go, with_constants
from normfuse.freezing.large_pages import put_together
from normfuse.freezing.library import choosing_libraries
from normfuse.freezing.others import Others
from normfuse.freezing.room import make_room
from normfuse.freezing.steadiness import give_up
from normfuse.inductor_compat import modules_let_go, traced_with
from normfuse.options import Options
from normfuse.torch_compat import FakeTensorMode, autocast_off, guards_on_sizes

__all__ = ["FrozenGraph", "is_for_others"]

log = logging.getLogger("normfuse")


def is_for_others(error: Exception) -> bool:
    """Whether an error is the user's to read, or Dynamo's to act on; what a compiler raises is neither."""
    is_dynamos = isinstance(error, TorchDynamoException) and not isinstance(error, BackendCompilerFailed)
    return is_dynamos or isinstance(error, NormfuseError)


@dataclass(frozen=True)
class FrozenGraph:
    """What it takes to compile a graph with weights in it; no weight is held.

    ``constant`` are the places of inputs that become constants, ``written`` of those that the graph writes
    to, and ``places`` of the weights that constants are made of. ``watched`` are the weights that may be
    running statistics, by number. ``traced`` are the stand-ins of inputs that Dynamo traced with, whose sizes
    may be open. ``note`` is told of the bytes of constants for other weights.
    """

    name: str
    original: GraphModule
    graph: Ready
    constant: tuple[int, ...]
    written: tuple[int, ...]
    rows: int
    bytes: int
    is_shareable: bool
    traced: tuple[Any, ...]
    places: tuple[int, ...]
    watched: tuple[int, ...]
    fake_mode: FakeTensorMode
    is_cast: bool
    options: Options
    settings: Mapping[str, Any]
    compile_again: Callable[[], None]
    note: Callable[[int], None]

    def weights(self, inputs: Sequence[Any], owners: Sequence[Owner] = ()) -> FrozenWeights:
        """The weights among some inputs, as they are now."""
        sources = [inputs[p] for p in self.places]
        state = FrozenWeights(self.name, self.places, sources, owners, dict.fromkeys(self.watched))
        state.rows, state.bytes, state.is_shareable = self.rows, self.bytes, self.is_shareable
        return state

    def compiled(self, inputs: Sequence[Any], state: FrozenWeights, *, is_first: bool = True) -> FrozenCall:
        """The graph with the weights ``state`` in it, which are among ``inputs``.

        Raises:
            BrokenPremiseError: where the graph would be rewritten in another way for these weights.
        """
        tensors = self.graph.slots.tensors(inputs)
        given = [*inputs, *tensors, *self.graph.constants]
        first = len(inputs) + len(tensors)
        values = {place: given[place] for place in (*self.constant, *range(first, len(given)))}
        module, kept = with_constants(self.graph.module, values)
        traced = inputs if is_first else self.traced
        shown = [*traced, *(fake_of(value, self.fake_mode) for value in given[len(inputs) :])]
        with autocast_off(), torch.no_grad(), modules_let_go() as constants:
            compiled = self._inductor(module, [shown[p] for p in kept], state)
        let_go(module)
        self.graph.slots.clear()
        put_together(_copies(constants, values.values()))
        state.compiled = without_autocast(compiled) if self.is_cast else compiled
        others = Others(state, self.original, self.for_others) if is_first else None
        return FrozenCall(state, kept, self.original, self.compile_again, self.written, others)

    def for_others(self, inputs: Sequence[Any]) -> FrozenCall | None:
        """The graph with the weights of another model in it, or None where it cannot be.

        Dynamo has written its guards: what holds for some open sizes only cannot be taken any more. Where it
        is for good, the graph is compiled without weights from then on, and its report says why.
        """
        state, guards = self.weights(inputs), guards_on_sizes(self.fake_mode)
        if self.options.freeze == "auto" and (reason := make_room(state)):
            self._give_up(inputs, reason)
            return None
        try:
            with traced_with(self.fake_mode):
                call = self.compiled(inputs, state, is_first=False)
            if guards_on_sizes(self.fake_mode) > guards:
                state.release()
                self._give_up(inputs, "for the weights of another model it needs sizes of its own")
                return None
        except BrokenPremiseError:  # Dynamo has it rewritten for these weights
            return None
        except Exception as error:
            if is_strict():
                raise
            log.info("not compiled with the weights of another model", exc_info=error)
            self._give_up(inputs, cause(error))
            return None
        self.note(state.bytes)
        return call

    def _give_up(self, inputs: Sequence[Any], reason: str) -> None:
        give_up(self.name, [inputs[p] for p in self.places], reason)

    def _inductor(self, module: GraphModule, shown: Sequence[Any], state: FrozenWeights) -> inner.Compiled:
        """Where Inductor cannot go on with what normfuse packs, it packs the weights itself."""
        try:
            with choosing_libraries(state.held) as choices:
                compiled = inner.run_inner(module, shown, self.options, self.settings)
            state.packed, state.is_shareable = choices.packed, state.is_shareable and not choices.has_others
            if state.held is not None:
                new = state.packed.keys() - state.held.keys()
                state.bytes = sum(state.packed[key].nbytes for key in new)
                state.held = None
            return compiled
        except Exception as error:
            if is_strict() or is_for_others(error):
                raise
            log.info("compiled again, without a choice of libraries", exc_info=error)
            state.is_shareable, state.held = False, None
            return inner.run_inner(module, shown, self.options, self.settings)


def _copies(constants: Iterable[torch.Tensor], originals: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The constants on the CPU that do not lie in the memory of the model."""
    shared = {one.untyped_storage().data_ptr() for one in originals}
    held = [one for one in constants if one.device.type == "cpu"]
    plain = [one for one in held if one.layout == torch.strided]
    copied = [one for one in plain if one.untyped_storage().data_ptr() not in shared]
    return copied + [one for one in held if one.is_mkldnn]
