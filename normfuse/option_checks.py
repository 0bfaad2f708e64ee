"""What the options of normfuse may be, each and together: one clear sentence for anything else.

``prefix`` is how the caller spells them: torch.compile takes them with one, and every other door without.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from normfuse.errors import OptionError
from normfuse.ir.kinds import kinds_may_be_taught, known_kinds
from normfuse.rule_names import RULE_NAMES

__all__ = ["PREFIX", "checked_values", "unknown_name"]

PREFIX = "normfuse."

_CHOICES: dict[str, tuple[str, ...]] = {
    "target": ("rms_norm", "crms_norm", "layer_norm"),
    "crms_basis": ("drop_last", "orthonormal"),
    "policy": ("convert", "pays"),
    "inner": ("inductor", "eager", "aot_eager"),
    "verify": ("off", "output", "sites", "thorough"),
    "allow": ("exact", "approximate"),
    "memory": ("copy",),
    "freeze": ("auto", "on", "off"),
    "lower": ("auto", "inductor", "triton", "deferred"),
}
#: Values that are not taken, and why.
_NOT_TAKEN = {
    ("memory", "in_place"): (
        "is not taken: a graph does not show who else reads its weights, and a graph that is compiled later, "
        "or code that is not compiled, would find them changed; call normfuse.apply(model, args, "
        "paths='shown') before torch.compile, which then makes no copies"
    ),
}
#: What only torch.compile takes, and why.
_COMPILING = {
    "freeze": "a rewritten program stores its weights anyway",
    "inner": "a rewritten program is run by whoever loads it",
    "lower": "a program runs without normfuse's kernels",
    "mode": "a rewritten program is run by whoever loads it",
}


def checked_values(given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values of known options, as :class:`normfuse.options.Options` holds them.

    Raises:
        OptionError: naming the option, the value, and what is allowed.
    """
    for name, value in given.items():
        _check_choice(name, value, prefix)
        if name in _COMPILING and prefix != PREFIX:
            raise OptionError(f"{prefix}{name} is for torch.compile; {_COMPILING[name]}")
    values = dict(given)
    for name in ("only", "skip"):
        if values.get(name) is not None:
            values[name] = _rules(name, values[name], prefix)
    values["skip"] = values.get("skip") or ()
    _check_together(values.get("only"), values["skip"], prefix)
    _check_crms(values, prefix)
    if values.get("allow") == "approximate" and values.get("verify") == "output":
        raise OptionError(
            f"{prefix}verify='output' compares with the original, by the budget of exact rules; with "
            f"{prefix}allow='approximate' use {prefix}verify='sites', which judges each rule by its bound"
        )
    if values.get("freeze") == "on" and values.get("inner", "inductor") != "inductor":
        raise OptionError(f"{prefix}freeze='on' goes with {prefix}inner='inductor', which compiles")
    if prefix != PREFIX:
        values["lower"] = "inductor"
    if values.get("rotation") is not None:
        values["rotation"] = _rotation(values, prefix)
    if values.get("expect") is not None:
        values["expect"] = _expectation(values["expect"], prefix)
    return values


def unknown_name(what: str, name: str, known: Iterable[str], prefix: str = "") -> OptionError:
    """An error that names the nearest valid name."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {prefix}{near[0]}?" if near else f"; choose one of {', '.join(sorted(known))}"
    return OptionError(f"unknown {what} {prefix}{name!s}{hint}")


def _check_choice(name: str, value: Any, prefix: str) -> None:
    choices = _CHOICES.get(name)
    if isinstance(value, str) and (name, value) in _NOT_TAKEN:
        raise OptionError(f"{prefix}{name}={value!r} {_NOT_TAKEN[name, value]}")
    if (
        choices is not None
        and value not in choices
        and not (name in ("policy", "crms_basis") and value is None)
    ):
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(map(repr, choices))}"
        raise OptionError(f"{prefix}{name} does not take {value!r}; {hint}")
    if name == "mode" and value is not None and not isinstance(value, str):
        raise OptionError(f"{prefix}mode takes the name of an Inductor mode, not {value!r}")


def _rules(name: str, value: Any, prefix: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise OptionError(f"{prefix}{name} takes a list of rule names, not {value!r}")
    rules = tuple(value)
    for rule in rules:
        if rule not in RULE_NAMES:
            raise unknown_name("rule", str(rule), RULE_NAMES)
    return rules


def _check_together(only: tuple[str, ...] | None, skip: tuple[str, ...], prefix: str) -> None:
    """Refuse a rule that one list asks for and the other one leaves out."""
    for rule in only or ():
        if rule in skip:
            raise OptionError(f"{prefix}only and {prefix}skip both name {rule}; leave it in one of them")


def _check_crms(values: Mapping[str, Any], prefix: str) -> None:
    """Refuse a basis without what is to be stored in it, and the target without the rules that make it."""
    target, only = values.get("target", "rms_norm"), values.get("only")
    if values.get("crms_basis") is not None and target != "crms_norm":
        raise OptionError(f"{prefix}crms_basis goes with {prefix}target='crms_norm', not with {target!r}")
    for rule in ("recentre", "compress") if target == "crms_norm" else ():
        left_out_by = "skip" if rule in values["skip"] else "only"
        if rule in values["skip"] or (only is not None and rule not in only):
            raise OptionError(
                f"{prefix}{left_out_by} leaves out {rule}, which {prefix}target='crms_norm' asks for"
            )


def _rotation(values: Mapping[str, Any], prefix: str) -> torch.Tensor:
    """The matrix in float64, where it is orthogonal and something asks for it."""
    given, only = values["rotation"], values["only"] if values.get("only") is not None else ("rotate",)
    if prefix == PREFIX:
        raise OptionError(f"{prefix}rotation is for normfuse.rewrite, which stores the rotated weights")
    if values.get("target", "rms_norm") != "rms_norm":
        raise OptionError(f"{prefix}rotation goes with {prefix}target='rms_norm', not {values['target']!r}")
    if "rotate" in values["skip"] or "rotate" not in only:
        raise OptionError(f"{prefix}only or {prefix}skip leaves out rotate, which {prefix}rotation asks for")
    is_square = isinstance(given, torch.Tensor) and given.dim() == 2 and given.shape[0] == given.shape[1] > 0
    if not is_square:
        shape = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise OptionError(f"{prefix}rotation takes a square matrix, not {shape}")
    if given.is_complex() or given.is_meta:
        what = "complex numbers" if given.is_complex() else "no numbers, since it is on the meta device"
        raise OptionError(f"{prefix}rotation takes a matrix of real numbers; this one holds {what}")
    if given.layout != torch.strided:
        raise OptionError(f"{prefix}rotation takes a dense matrix; call .to_dense() on this {given.layout}")
    matrix: torch.Tensor = given.detach().to(torch.float64)
    off = (matrix @ matrix.T - torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)).abs().max()
    # What factorizations in float64 leave, and none in float32 (Higham 2002, section 19.3).
    if not off <= 16 * len(matrix) * torch.finfo(torch.float64).eps:
        raise OptionError(
            f"{prefix}rotation is not orthogonal: its rows are off by {float(off):.2g}; "
            "use torch.linalg.qr of a matrix in float64"
        )
    return matrix


def _expectation(value: Any, prefix: str) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise OptionError(f"{prefix}expect takes a mapping from kind to count, not {value!r}")
    for kind, count in value.items():
        if kind not in known_kinds() and not (isinstance(kind, str) and kinds_may_be_taught()):
            raise unknown_name("kind of norm", str(kind), known_kinds())
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise OptionError(f"{prefix}expect[{kind!r}] takes a count, not {count!r}")
    return dict(value)
