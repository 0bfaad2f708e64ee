"""Options of normfuse, told apart from Inductor's by the prefix ``normfuse.``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from normfuse.errors import OptionError
from normfuse.ir.kinds import kinds_may_be_taught, known_kinds
from normfuse.rule_names import RULE_NAMES

__all__ = ["PREFIX", "Options", "split_options", "unknown_name"]

PREFIX = "normfuse."

_CHOICES: dict[str, tuple[str, ...]] = {
    "target": ("rms_norm", "crms_norm", "layer_norm"),
    "crms_basis": ("drop_last", "orthonormal"),
    "policy": ("convert", "pays"),
    "inner": ("inductor", "eager", "aot_eager"),
    "verify": ("off", "output", "sites", "thorough"),
    "allow": ("exact",),
    "memory": ("copy",),
    "freeze": ("auto", "on", "off"),
    "lower": ("auto", "inductor", "triton", "deferred"),
}
#: Values that are not taken, and why.
_NOT_TAKEN = {
    ("allow", "approximate"): "is not there yet; leave it out",
    ("memory", "in_place"): (
        "is not taken: a graph does not show who else reads its weights, and a graph that is compiled later, "
        "or code that is not compiled, would find them changed; call normfuse.apply(model, args, "
        "paths='shown') before torch.compile, which then makes no copies"
    ),
}


@dataclass(frozen=True)
class Options:
    """Checked options.

    Attributes:
        target: what a LayerNorm becomes where that is proven: ``"rms_norm"``; ``"crms_norm"``, an RMSNorm
            whose input is stored in one coordinate less; ``"layer_norm"`` leaves it one.
        crms_basis: with the target ``"crms_norm"``, the coordinates: ``"drop_last"`` (the default) leaves
            out the last, ``"orthonormal"`` keeps lengths, so that the norm is a plain RMSNorm.
        policy: ``"convert"`` makes every proven conversion that adds no operation, plus one
            centring at a stream's head; ``"pays"`` makes none that needs a centring, and where gradients
            are recorded only those that save more memory traffic than the changed weights cause.
            None stands for ``"convert"`` in inference and ``"pays"`` in training.
        expect: kind -> number of norms that must remain; anything else raises.
        mode: an Inductor mode, for use together with options.
        inner: what runs the rewritten graph.
        verify: ``"output"`` compares the rewritten graph with the original before it is used, and
            does not use it when it is further from float64 than the error budget allows;
            ``"sites"`` compares every norm, on hostile inputs too, and reverts those over budget;
            ``"thorough"`` does so on every kind of hostile inputs.
        only, skip: rules by name.
        rotation: an orthogonal matrix in float64 to turn the stream by; for :func:`normfuse.rewrite`.
        freeze: whether weights are compiled into the graph, and it is compiled again when they change:
            ``"auto"`` on a CPU in inference, ``"on"``, ``"off"``.
        lower: what runs the norms that are left: ``"inductor"``; ``"triton"``, a kernel of normfuse's own
            where it has one, on a GPU; ``"deferred"``, a factor that multiplies what the products behind the
            norm give, where products are all that reads it; or ``"auto"``, the fastest of these where it can
            be measured, which is in inference on a GPU, and else Inductor.
        allow: exact rules alone, for now.
        memory: copies beside the originals; :func:`normfuse.apply` writes into the originals instead.
    """

    target: str = "rms_norm"
    crms_basis: str | None = None
    policy: str | None = None
    expect: Mapping[str, int] | None = None
    mode: str | None = None
    inner: str = "inductor"
    verify: str = "off"
    only: tuple[str, ...] | None = None
    skip: tuple[str, ...] = ()
    allow: str = "exact"
    memory: str = "copy"
    freeze: str = "auto"
    lower: str = "auto"
    rotation: torch.Tensor | None = field(default=None, compare=False)
    inductor: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def checked(
        cls, given: Mapping[str, Any], inductor: Mapping[str, Any] | None = None, prefix: str = PREFIX
    ) -> Options:
        """Options from names without prefix; ``prefix`` is how the caller spells them in messages.

        Raises:
            OptionError: naming the option, the value, and what is allowed.
        """
        known = [f.name for f in fields(cls) if f.name != "inductor"]
        for name, value in given.items():
            if name not in known:
                raise unknown_name("option", name, known, prefix)
            _check_choice(name, value)
        values = dict(given)
        for name in ("only", "skip"):
            if values.get(name) is not None:
                values[name] = _rules(name, values[name])
        values["skip"] = values.get("skip") or ()
        _check_together(values.get("only"), values["skip"], prefix)
        _check_basis(values, prefix)
        _check_freezing(values, prefix)
        values |= _lowering(values, prefix)
        if values.get("rotation") is not None:
            values["rotation"] = _rotation(values, prefix)
        if values.get("expect") is not None:
            values["expect"] = _expectation(values["expect"])
        return cls(**values, inductor=dict(inductor or {}))

    def converts(self, grad_enabled: bool) -> bool:
        """Whether the policy is to convert wherever that is proven."""
        return (self.policy or ("pays" if grad_enabled else "convert")) == "convert"

    @property
    def by_sites(self) -> bool:
        """Whether every norm is verified by itself."""
        return self.verify in ("sites", "thorough")

    def runs(self, rule: str) -> bool:
        """Whether ``only`` and ``skip`` leave this rule in."""
        return rule not in self.skip and (self.only is None or rule in self.only)


def split_options(options: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours without their prefix, and Inductor's."""
    given = dict(options or {})
    ours = {k.removeprefix(PREFIX): v for k, v in given.items() if k.startswith(PREFIX)}
    return ours, {k: v for k, v in given.items() if not k.startswith(PREFIX)}


def unknown_name(what: str, name: str, known: Iterable[str], prefix: str = "") -> OptionError:
    """An error that names the nearest valid name."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {prefix}{near[0]}?" if near else f"; choose one of {', '.join(sorted(known))}"
    return OptionError(f"unknown {what} {prefix}{name!s}{hint}")


def _check_choice(name: str, value: Any) -> None:
    choices = _CHOICES.get(name)
    if isinstance(value, str) and (name, value) in _NOT_TAKEN:
        raise OptionError(f"{PREFIX}{name}={value!r} {_NOT_TAKEN[name, value]}")
    if (
        choices is not None
        and value not in choices
        and not (name in ("policy", "crms_basis") and value is None)
    ):
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(map(repr, choices))}"
        raise OptionError(f"{PREFIX}{name} does not take {value!r}; {hint}")
    if name == "mode" and value is not None and not isinstance(value, str):
        raise OptionError(f"{PREFIX}mode takes the name of an Inductor mode, not {value!r}")


def _rules(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise OptionError(f"{PREFIX}{name} takes a list of rule names, not {value!r}")
    for rule in value:
        if rule not in RULE_NAMES:
            raise unknown_name("rule", str(rule), RULE_NAMES)
    return tuple(value)


def _check_together(only: tuple[str, ...] | None, skip: tuple[str, ...], prefix: str) -> None:
    """Refuse a rule that one list asks for and the other one leaves out."""
    for rule in only or ():
        if rule in skip:
            raise OptionError(f"{prefix}only and {prefix}skip both name {rule}; leave it in one of them")


def _check_basis(values: Mapping[str, Any], prefix: str) -> None:
    """Refuse a basis without what is to be stored in it, and the other way round."""
    target = values.get("target", "rms_norm")
    if values.get("crms_basis") is not None and target != "crms_norm":
        raise OptionError(f"{prefix}crms_basis goes with {prefix}target='crms_norm', not with {target!r}")
    if target == "crms_norm" and "compress" in values["skip"]:
        raise OptionError(f"{prefix}skip leaves out compress, which {prefix}target='crms_norm' asks for")


def _check_freezing(values: Mapping[str, Any], prefix: str) -> None:
    """Refuse to freeze where nothing is compiled."""
    if prefix != PREFIX and "freeze" in values:
        raise OptionError(
            f"{prefix}freeze is for torch.compile; a rewritten program stores its weights anyway"
        )
    if values.get("freeze") == "on" and values.get("inner", "inductor") != "inductor":
        raise OptionError(f"{prefix}freeze='on' goes with {prefix}inner='inductor', which compiles")


def _lowering(values: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """What runs the norms of a rewritten program is for whoever compiles it."""
    if prefix == PREFIX:
        return {}
    if "lower" in values:
        raise OptionError(f"{prefix}lower is for torch.compile; a program runs without normfuse's kernels")
    return {"lower": "inductor"}


def _rotation(values: Mapping[str, Any], prefix: str) -> torch.Tensor:
    """The matrix in float64, where it is orthogonal and something asks for it."""
    given, only = values["rotation"], values["only"] if values.get("only") is not None else ("rotate",)
    if prefix == PREFIX:
        raise OptionError(f"{prefix}rotation is for normfuse.rewrite, which stores the rotated weights")
    if values.get("target", "rms_norm") != "rms_norm":
        raise OptionError(f"{prefix}rotation goes with {prefix}target='rms_norm', not {values['target']!r}")
    if "rotate" in values["skip"] or "rotate" not in only:
        raise OptionError(f"{prefix}only or {prefix}skip leaves out rotate, which {prefix}rotation asks for")
    if not isinstance(given, torch.Tensor) or given.dim() != 2 or given.shape[0] != given.shape[1]:
        shape = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise OptionError(f"{prefix}rotation takes a square matrix, not {shape}")
    matrix = given.detach().to(torch.float64)
    off = (matrix @ matrix.T - torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)).abs().max()
    # What factorizations in float64 leave, and none in float32 (Higham 2002, section 19.3).
    if not off <= 16 * len(matrix) * torch.finfo(torch.float64).eps:
        raise OptionError(
            f"{prefix}rotation is not orthogonal: its rows are off by {float(off):.2g}; "
            "use torch.linalg.qr of a matrix in float64"
        )
    return matrix


def _expectation(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise OptionError(f"{PREFIX}expect takes a mapping from kind to count, not {value!r}")
    for kind, count in value.items():
        if kind not in known_kinds() and not (isinstance(kind, str) and kinds_may_be_taught()):
            raise unknown_name("kind of norm", str(kind), known_kinds())
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise OptionError(f"{PREFIX}expect[{kind!r}] takes a count, not {count!r}")
    return dict(value)
