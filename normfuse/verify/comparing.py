"""Two programs compared on one call: both run, the oracle runs, and every leaf is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfuse.errors import VerificationError
from normfuse.verify.capture import runnable
from normfuse.verify.equivalence import Equivalence, LeafError
from normfuse.verify.numerics import judge_but_overflow, one_rounding_off
from normfuse.verify.oracles import CapturedOracle, Oracle
from normfuse.verify.reach import Reach
from normfuse.verify.runs import Run, require_same_structure, run_program
from normfuse.verify.second_look import judged_twice
from normfuse.verify.state import judge_state

__all__ = ["Pair", "compare"]

_GRADIENT = "grad:"


def compare(
    reference: Any, candidate: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *,
    grads: bool = False, hostile: bool = False,
) -> Equivalence:  # fmt: skip
    """What :func:`normfuse.verify` does on one input; on a ``hostile`` one ties may fall either way."""
    pair = Pair(runnable(reference), runnable(candidate), CapturedOracle(reference, grads), grads)
    original = pair.run_reference(args, kwargs)
    return pair.judged(args, kwargs, original, pair.run_candidate(args, kwargs), hostile)


@dataclass(frozen=True)
class Pair:
    """Two callables and the oracle of the first."""

    reference: Any
    candidate: Any
    oracle: Oracle
    grads: bool = False

    def run_reference(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        return self._run(self.reference, args, kwargs, "reference")

    def run_candidate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        return self._run(self.candidate, args, kwargs, "candidate")

    def _run(self, program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], role: str) -> Run:
        with torch.inference_mode(False), torch.set_grad_enabled(self.grads):
            return run_program(program, args, kwargs, self.grads, role)

    def judged(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], original: Run, rewritten: Run, hostile: bool
    ) -> Equivalence:
        """The verdict on what both made of these inputs."""
        require_same_structure(original, rewritten)
        call = _Call(self, args, kwargs, original.dtypes)
        values = call.values(original, rewritten, self._exact(call, None))

        def judge_one(path: str, r: Tensor, c: Tensor, o: Tensor, reach: Reach) -> LeafError:
            return judge_but_overflow(path, r, c, o, reach, hostile=hostile)

        leaves = list(judged_twice(values, call, judge_one, hostile).values())
        return Equivalence.of([*leaves, *judge_state(original.written, rewritten.written)])

    def _exact(self, call: _Call, draw: int | None) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.set_grad_enabled(self.grads):
            return self.oracle.values(call.args, call.kwargs, call.dtypes, draw)


@dataclass(frozen=True)
class _Call:
    """One call of a pair, to be looked at again."""

    pair: Pair
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dtypes: Mapping[str, torch.dtype]

    def carried(self, draw: int) -> dict[str, Tensor]:
        return self.pair._exact(self, draw)

    def nearby(self, draw: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        args, kwargs = pytree.tree_map(lambda v: one_rounding_off(v, draw), (self.args, self.kwargs))
        call = _Call(self.pair, args, kwargs, self.dtypes)
        try:
            original, rewritten = self.pair.run_reference(args, kwargs), self.pair.run_candidate(args, kwargs)
        except Exception as error:
            raise VerificationError("it does not take inputs that are one rounding off") from error
        return call.values(original, rewritten, self.pair._exact(call, None))

    def values(
        self, original: Run, rewritten: Run, exact: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Every tensor that both return, and every gradient, by path, with its oracle."""
        theirs, ours = _named(original), _named(rewritten)
        for path in theirs:
            if path not in exact:
                raise VerificationError(f"{path} was not returned again when the reference was traced.")
        return {path: (value, ours[path], exact[path]) for path, value in theirs.items()}


def _named(run: Run) -> dict[str, Tensor]:
    return run.tensors | {f"{_GRADIENT}{name}": value for name, value in run.gradients.items()}
