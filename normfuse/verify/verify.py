"""verify(f, g): whether g is as close to f computed in float64 as f itself is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from normfuse.errors import InputError
from normfuse.verify.capture import program_in
from normfuse.verify.comparing import compare
from normfuse.verify.equivalence import Equivalence
from normfuse.verify.programs import cases_of, compare_programs

__all__ = ["compare", "verify"]


def verify(
    reference: Any,
    candidate: Any,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    grads: bool = False,
    thorough: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Equivalence:
    """Compare ``candidate`` with ``reference`` on one input, against ``reference`` computed in float64.

    Both are modules (compiled or not), callables, exported programs, or objects whose ``program`` is one.
    They run as they are, from the same random state, on copies of the inputs; afterwards their parameters,
    buffers, flags and torch's random state are as before. Per floating leaf of the output, in L2 norms,

        error_ratio = |candidate - oracle| / max(|reference - oracle|, one ulp of |oracle|)  <=  1.5

    decides; more is allowed where chance or one rounding of the inputs and weights explains it, and the
    ``allowed`` of a leaf says how much. Float64 leaves may differ by ``DOUBLE_BOUND`` instead, integers have
    to be equal. The result is not ``ok`` either when an output could not be judged, because the original
    itself is no yardstick for it; ``unjudged`` names those. With ``grads``
    the gradients of a fixed random projection of the outputs with respect to every trainable parameter are
    leaves too, called ``grad:<name>``; parameters are matched by name. Weights and inputs that either of them
    wrote to have to agree to half of the digits of their dtype; they are called ``written:<name>``.

    Two programs (exported ones, or paths of ``.pt2`` files) and no inputs: they are compared on the stored
    inputs of the reference, on random ones and on hostile ones, and the result also has ``cases``. That costs
    about as much as 25 runs; ``thorough`` asks for every kind of hostile inputs, which costs twice as much,
    and ``progress`` is told what is run next.

    Raises ``VerificationError`` when outputs or parameters do not correspond, or the reference has no float64
    oracle; ``CaptureError`` when it cannot be traced; ``InputError`` for something that cannot be run.
    """
    given: object = args
    if isinstance(given, Tensor):
        raise InputError("args takes a tuple of inputs; write (x,) for one tensor")
    kwargs = kwargs or {}
    reference, candidate = program_in(reference), program_in(candidate)
    if not (args or kwargs or grads) and isinstance(reference, ExportedProgram):
        if not isinstance(candidate, ExportedProgram):
            raise InputError("without inputs, both reference and candidate have to be exported programs")
        cases = cases_of(reference, thorough=thorough)
        return compare_programs(reference, candidate, cases, progress or (lambda name: None))
    return compare(reference, candidate, args, kwargs, grads=grads)
