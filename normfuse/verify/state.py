"""What a call leaves behind besides its outputs: weights, buffers and inputs that it wrote to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normfuse.arguments import require_values
from normfuse.verify.compare import max_abs_error, max_rel_error, same_finiteness
from normfuse.verify.dtypes import is_real_number
from normfuse.verify.equivalence import LeafError
from normfuse.verify.leaves import named_leaves

__all__ = ["State", "judge_state"]


class State:
    """Parameters, buffers and inputs before a call, to be compared with what they hold behind it.

    ``known`` are values before, by the identity of their tensor: those of the parameters to look at, too.
    """

    def __init__(
        self,
        program: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        known: Mapping[int, Tensor],
    ) -> None:
        self._held: dict[str, Tensor] = {}
        if isinstance(program, nn.Module):
            self._held = dict(program.named_buffers())
            self._held |= {name: p for name, p in program.named_parameters() if id(p) in known}
        passed = named_leaves((args, dict(kwargs)))
        self._held |= {
            f"input{path.removeprefix('output')}": leaf
            for path, leaf in passed.items()
            if isinstance(leaf, Tensor)
        }
        require_values(self._held.items())
        self._before = {
            name: known[id(value)] if id(value) in known else value.detach().clone()
            for name, value in self._held.items()
        }

    def written(self) -> dict[str, Tensor]:
        """What holds other numbers than before, by name."""
        pairs = {name: (before, self._held[name].detach()) for name, before in self._before.items()}
        return {name: now.clone() for name, (before, now) in pairs.items() if not _are_equal(before, now)}


def _are_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).logical_or((a != a) & (b != b)).all())


def judge_state(reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]) -> list[LeafError]:
    """Whether both left the same behind: without an oracle, so to half of the digits of their dtype."""
    return [_judged(name, reference.get(name), candidate.get(name)) for name in {**reference, **candidate}]


def _judged(name: str, reference: Tensor | None, candidate: Tensor | None) -> LeafError:
    known = reference if reference is not None else candidate
    assert known is not None
    if reference is None or candidate is None or reference.shape != candidate.shape:
        return _leaf(name, known, math.inf, math.inf, ok=False)
    wide = torch.complex128 if known.dtype.is_complex else torch.float64
    r, c = (v.to(wide).nan_to_num(0.0, 0.0, 0.0).flatten() for v in (reference, candidate))
    error = max_rel_error(c, r)
    allowed = math.sqrt(torch.finfo(known.dtype).eps) if is_real_number(known.dtype) else 0.0
    alike = same_finiteness(reference, candidate) and reference.dtype == candidate.dtype
    return _leaf(name, known, max_abs_error(c, r), error, ok=alike and error <= allowed)


def _leaf(name: str, value: Tensor, absolute: float, relative: float, *, ok: bool) -> LeafError:
    ratio = 0.0 if ok else math.inf
    shape = tuple(value.shape)
    return LeafError(f"written:{name}", value.dtype, shape, absolute, relative, ratio, judged=True, ok=ok)
