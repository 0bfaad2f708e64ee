"""How far a candidate is from a float64 oracle, measured against how far the original is.

    error_ratio = |candidate - oracle| / max(|reference - oracle|, eps(dtype) * |oracle|)        (L2 norms)

The floor is one unit in the last place of the output's norm: a reference that happens to be exact does not
turn a correctly rounded candidate into an infinite ratio.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "comparable",
    "distance",
    "error_ratio",
    "is_finite",
    "max_abs_error",
    "max_rel_error",
    "relative_error",
    "same_finiteness",
]


def error_ratio(reference: Tensor, candidate: Tensor, oracle: Tensor) -> float:
    """L2 error of ``candidate`` over L2 error of ``reference``, both against ``oracle``; three equal shapes.

    ``reference`` and ``candidate`` are floating or complex tensors in the model's dtype, ``oracle`` in
    float64 or complex128. The denominator is at least ``eps * |oracle|``, and at least the smallest subnormal
    number, with both constants of the dtype of ``reference``; so 0/0 is 0.0, and the ratio of a candidate
    that misses a zero oracle is huge. Only elements finite in reference and oracle count (none: 0.0). A
    candidate that is not finite exactly where the reference is not has the ratio ``inf``, and so has one that
    is nan, or the other infinity, where reference and oracle are infinite.
    """
    if not same_finiteness(reference, candidate, oracle):
        return math.inf
    info = torch.finfo(reference.dtype)
    r, c, o = comparable(reference, candidate, oracle)
    floor = max(info.eps * _norm(o), info.smallest_normal * info.eps)
    return _norm(c - o) / max(_norm(r - o), floor)


def distance(a: Tensor, b: Tensor) -> float:
    """``|a - b|`` in L2 over wide vectors."""
    return _norm(a - b)


def relative_error(value: Tensor, target: Tensor) -> float:
    """``|value - target| / |target|`` in L2 over wide vectors; 0/0 is 0.0."""
    return _quotient(_norm(value - target), _norm(target))


def max_abs_error(candidate: Tensor, oracle: Tensor) -> float:
    """``max |candidate - oracle|`` over wide vectors, 0.0 without elements."""
    return _peak(candidate - oracle)


def max_rel_error(candidate: Tensor, oracle: Tensor) -> float:
    """``max |candidate - oracle| / max |oracle|`` over wide vectors; 0/0 is 0.0.

    Relative to the largest element, not element by element: an element that cancels to almost zero has no
    relative accuracy in the original either.
    """
    return _quotient(_peak(candidate - oracle), _peak(oracle))


def same_finiteness(reference: Tensor, candidate: Tensor, oracle: Tensor | None = None) -> bool:
    """Whether both are finite (not nan, not inf) in the same places.

    Where ``oracle`` is not finite either, they are also nan or one of the infinities in the same places: the
    function is so there, and it is no overflow of one of them.
    """
    r, c = _wide(reference), _wide(candidate).to(reference.device)
    if not torch.equal(torch.isfinite(r), torch.isfinite(c)):
        return False
    if oracle is None:
        return True
    meant = ~torch.isfinite(_wide(oracle).to(reference.device))
    return torch.equal(r[meant].nan_to_num(2.0, 1.0, -1.0), c[meant].nan_to_num(2.0, 1.0, -1.0))


def comparable(reference: Tensor, candidate: Tensor, oracle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The elements where reference and oracle are finite, as wide real vectors on the oracle's device."""
    device = oracle.device
    mask = _finite(reference).to(device) & _finite(oracle)
    r, c, o = (_wide(t.to(device))[mask] for t in (reference, candidate, oracle))
    return r, c, o


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_complex():
        return torch.view_as_real(tensor.to(torch.complex128).resolve_conj())
    return tensor.to(torch.float64)


def is_finite(tensor: Tensor) -> Tensor:
    """Of any dtype; both parts of a complex number."""
    finite = _finite(tensor)
    return finite.all(-1) if tensor.is_complex() else finite


def _finite(tensor: Tensor) -> Tensor:
    return torch.isfinite(_wide(tensor))


def _peak(vector: Tensor) -> float:
    return float(vector.abs().max()) if vector.numel() else 0.0


def _norm(vector: Tensor) -> float:
    """L2 norm, scaled so that squares neither overflow nor vanish."""
    peak = _peak(vector)
    return peak * float(torch.linalg.vector_norm(vector / peak)) if 0.0 < peak < math.inf else peak


def _quotient(error: float, size: float) -> float:
    if error == 0.0:
        return 0.0
    return error / size if size > 0.0 else math.inf
