"""``normfuse.apply``: what the rules fold is written into the model's own weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.func import functional_call

from normfuse.arguments import require_values
from normfuse.capture.exported import export_model, program_of
from normfuse.errors import InputError, OptionError, VerificationError
from normfuse.in_place.additions import watch_additions
from normfuse.in_place.applied import Applied, write
from normfuse.in_place.centred import centred_parts
from normfuse.in_place.held import Held, Place
from normfuse.in_place.parts import Parts
from normfuse.in_place.plan import Plan, plan
from normfuse.in_place.propose import values_of
from normfuse.ir.location import WRAPPERS
from normfuse.ir.program import Program
from normfuse.options import Options
from normfuse.rewriting import as_program, check_module, checked_options
from normfuse.rule_names import RULE_NAMES

__all__ = ["RULES", "apply"]

#: The rules whose results weights of the same model can hold.
RULES = ("recentre", "fold_scale", "fold_affine")
#: What asks whether a model is centred as it stands.
_RECENTRE = checked_options({"only": ["recentre"], "policy": "convert", "verify": "off"})
_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
Call = tuple[Sequence[Any], Mapping[str, Any]]


def apply(
    model: torch.nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    paths: str | None = None,
    also: Sequence[Call | ExportedProgram] = (),
    training: bool = False,
    keep_originals: bool = False,
    norms: str = "keep",
    verify: str = "output",
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> Applied:
    """Write what the rules fold into the model's own weights, such that it stays the same function.

        W -> C W,  b -> C b                           where norms alone read what W and b write
        W -> W diag(w),  c -> c + W b,  w -> 1,  b -> 0          where weights read a norm
        W -> D W                                      where a norm with stored statistics follows

    Modules, names, shapes and the identity of parameters stay. The model in eager mode gives what it gave but
    for rounding, every engine that reads its modules too, and ``torch.compile(model, backend="normfuse")``
    then makes no copies of what was written.

    The change is judged on the calls that are shown: the one with these inputs, and those in ``also``. What
    else the model can do is not seen: another branch of ``forward``, such as one that returns the hidden
    states, another method, another model that shares a weight. ``paths="shown"`` is your word that every use
    of the model is among the calls shown, or reads the weights in the same way.

    Args:
        model: a module in evaluation mode, neither compiled nor distributed nor quantized.
        args, kwargs: example inputs.
        paths: ``"shown"``; without it nothing is written.
        also: further calls, as pairs of ``args`` and ``kwargs``, or as programs that ``torch.export`` made of
            this model in another state or of a module around it.
        training: whether every pair is also a call in training mode, as it has to be where the model goes on
            to be trained with dropout or batch norms.
        keep_originals: whether to keep the original weights in memory on the host for ``undo``.
        norms: ``"rms_norm"`` has every ``nn.LayerNorm`` with a weight whose values have no mean in any call
            compute an RMSNorm, which is the same function: it stays the same object, and an
            ``nn.LayerNorm``. So a block that is compiled on its own has an RMSNorm, though its graph does
            not say what enters it. Where a table is tied, a hook takes the mean from what its module looks
            up. ``"keep"`` leaves modules as they are.
        verify: ``"output"`` compares the outputs of the first call with both sets of weights, against
            float64, before anything is written; ``"off"`` does not.
        only, skip: rules by name: ``recentre``, ``fold_scale`` and ``fold_affine``.

    Raises:
        InputError: without ``paths``; for a model that cannot be written to, or holds already what would be
            written.
        CaptureError: when a call cannot be exported.
        OptionError: for an unknown option or rule.
        VerificationError: when an output is further from float64 than the error budget allows.

    The model is unchanged whenever anything is raised. A module with parameters that is added to it
    afterwards, as an adapter is, is warned of; with ``norms="rms_norm"`` it is refused with an
    :class:`InputError`.
    """
    options = _options(paths, verify, only, skip)
    _check(model)
    _check_norms(norms, options, also)
    held = Held(model)
    exported = list(_exported(model, held, [(args, kwargs or {}), *also], training))
    calls = [functools.partial(_program, one, norms == "rms_norm") for one in exported]
    made, parts = plan(calls, held, options), Parts()
    if norms == "rms_norm":
        parts = centred_parts(model, (call() for call in calls), held, values_of(made.change), _RECENTRE)
    if made.settled and not parts:
        raise InputError(
            f"{type(model).__name__} holds already what normfuse.apply would write; it was applied before"
        )
    if verify == "output" and (made.change or parts):
        _verify(model, made, held, args, kwargs or {}, parts)
    written = write(made.change, held, keep_originals)
    parts.put()
    how = {held.names[place]: new.how for place, new in made.change.items()}
    made.report.copied_bytes = 0
    watch_additions(model, bool(parts))
    return Applied(made.report, how, made.left, parts, model, written)


def _options(paths: str | None, verify: str, only: Sequence[str] | None, skip: Sequence[str]) -> Options:
    if paths is None:
        raise InputError(
            "apply changes the model's own weights and sees only the calls that it is shown; pass "
            "paths='shown' if the model is used in no other way, and further calls as also=[(args, kwargs)]"
        )
    if paths != "shown":
        raise OptionError(f"paths takes 'shown', not {paths!r}")
    if verify not in ("off", "output"):
        raise OptionError(f"verify takes 'output' or 'off' here, not {verify!r}")
    for rule in only or ():
        if rule in RULE_NAMES and rule not in RULES:
            raise OptionError(f"apply has no place for what {rule} does; it takes {', '.join(RULES)}")
    options = checked_options({"only": only, "skip": skip, "verify": "off"})
    allowed = [rule for rule in RULES if options.runs(rule)]
    return checked_options({"only": allowed, "verify": "off"})


def _program(exported: ExportedProgram, centres_lookups: bool) -> Program:
    program = program_of(exported)
    program.centres_lookups = centres_lookups
    return program


def _check_norms(norms: str, options: Options, also: Sequence[Call | ExportedProgram]) -> None:
    if norms not in ("keep", "rms_norm"):
        raise OptionError(f"norms takes 'keep' or 'rms_norm', not {norms!r}")
    if norms == "keep":
        return
    if not options.runs("recentre"):
        raise OptionError("norms='rms_norm' rests on what recentre writes, which only or skip leave out")
    if any(isinstance(call, ExportedProgram) for call in also):
        raise InputError(
            "norms='rms_norm' has to know which modules a call runs, and a program in also does not say "
            "where in it the model stands; pass pairs (args, kwargs)"
        )


def _check(model: Any) -> None:
    """Refuse what cannot be written to.

    Raises:
        InputError: saying what it is, and what to do.
    """
    check_module(model)
    for name, part in model.named_modules():
        kind, label = type(part).__name__, name or "the model"
        if kind in WRAPPERS or kind.startswith("FSDP"):
            raise InputError(
                f"{label} is wrapped in {kind}; call normfuse.apply before, on the module inside"
            )
        if getattr(part, "_compiled_call_impl", None) is not None:
            raise InputError(f"{label} is compiled already; call normfuse.apply before it is")
        if part.training:
            raise InputError(f"{label} is in training mode; call .eval() on the model before normfuse.apply")
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if type(value) not in _PLAIN or value.is_quantized or value.layout != torch.strided:
            raise InputError(
                f"{name} is a {type(value).__name__}, not a plain tensor; call normfuse.apply before the "
                "model is quantized or distributed"
            )
        require_values([(name, value)])


def _exported(
    model: torch.nn.Module, held: Held, calls: Sequence[Call | ExportedProgram], training: bool
) -> Iterator[ExportedProgram]:
    for call in calls:
        if isinstance(call, ExportedProgram):
            values = (v for v in call.state_dict.values() if isinstance(v, torch.Tensor))
            if not any(Place.of(value) in held.tensors for value in values):
                raise InputError(
                    f"a program in also reads no weight of this {type(model).__name__}; export it from this "
                    "very model, or from a module around it"
                )
            yield call
            continue
        given: object = call
        if not (isinstance(given, tuple) and len(given) == 2):
            raise InputError(
                "also takes pairs (args, kwargs), or programs that torch.export made of the model"
            )
        yield as_program(model, *call)
        if training:
            with _in_training(model):
                yield export_model(model, *call, None)


@contextmanager
def _in_training(model: torch.nn.Module) -> Iterator[None]:
    flags = [(part, part.training) for part in model.modules()]
    model.train()
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag


def _verify(
    model: torch.nn.Module,
    made: Plan,
    held: Held,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    parts: Parts,
) -> None:
    """Run the model with both sets of weights, and with its norms and what they are to be.

    Raises:
        VerificationError: when an output is over budget or cannot be judged.
    """
    from normfuse.verify import verify

    values = {
        held.names[place]: new.value.to(held.tensors[place].device) for place, new in made.change.items()
    }

    def candidate(*given: Any, **named: Any) -> Any:
        parts.put()
        try:
            return functional_call(model, values, given, named)
        finally:
            parts.take_back()

    found = verify(model, candidate, tuple(args), dict(kwargs))
    if found.ok:
        return
    if found.differs:
        worst = "" if found.worst is None else f": error ratio {found.worst.figure}"
        raise VerificationError(
            f"with the folded weights the model differs from itself{worst}; nothing is written"
        )
    raise VerificationError(
        f"the outputs could not be judged on these inputs: {', '.join(found.unjudged)}; nothing is written"
    )
