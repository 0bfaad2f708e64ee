"""Options of normfuse, told apart from Inductor's by the prefix ``normfuse.``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from normfuse.errors import OptionError
from normfuse.option_checks import PREFIX, checked_values, unknown_name

__all__ = ["PREFIX", "Options", "split_options", "unknown_name"]


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
            be measured, which is on a GPU, and else Inductor.
        allow: ``"exact"`` rules alone, or ``"approximate"`` ones too, which change results within bounds that
            their certificates state.
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
        for name in given:
            if name not in known:
                raise unknown_name("option", name, known, prefix)
        values = checked_values(given, prefix)
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
    """Ours without their prefix, and Inductor's.

    Raises:
        OptionError: for something that is no mapping from names.
    """
    named: object = options or {}
    if not isinstance(named, Mapping) or not all(isinstance(name, str) for name in named):
        raise OptionError(f"options takes a mapping from names to values, not {options!r}")
    given = dict(named)
    ours = {k.removeprefix(PREFIX): v for k, v in given.items() if k.startswith(PREFIX)}
    return ours, {k: v for k, v in given.items() if not k.startswith(PREFIX)}
