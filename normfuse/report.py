"""What was found and what became of it, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from normfuse.files import write_text
from normfuse.ir.spec import NormSpec
from normfuse.report_stream import Part

__all__ = ["ACTIONS", "Cost", "Refusal", "Report", "Rewrite", "Site"]

ACTIONS = ("converted", "folded", "merged", "kept", "reverted")
"""What became of a norm. Of several things that were done to it, the first of these is told."""


@dataclass(frozen=True)
class Refusal:
    """Why a norm was left alone.

    Attributes:
        code: stable identifier, fit for counting.
        message: a sentence about this graph.
        node: name of the graph node that stands in the way.
        remedy: what would make the rewrite possible.
    """

    code: str
    message: str
    node: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Cost:
    """Of one call: floating-point operations, bytes of memory traffic, and kernels."""

    operations: float = 0.0
    bytes: float = 0.0
    kernels: int = 0

    def __add__(self, other: Cost) -> Cost:
        kernels = self.kernels + other.kernels
        return Cost(self.operations + other.operations, self.bytes + other.bytes, kernels)

    def __sub__(self, other: Cost) -> Cost:
        return self + Cost(-other.operations, -other.bytes, -other.kernels)


class Rewrite(NamedTuple):
    """What one rule did to a norm, and why the norm is the same function still."""

    rule: str
    certificate: dict[str, Any]


@dataclass
class Site:
    """One norm of the model: what it is, where it is, and what became of it.

    ``errors`` holds, where the site was verified, its error against float64 over the original's, by the
    inputs it was run on. ``rewrites`` are the rules that changed it, in their order, each with its
    certificate; ``refusals`` says, by the names of rules, why they did not, or why that was undone.
    ``modulation`` says what the model does to the result as a function of its input: ``"gate"``,
    ``"scale"``, ``"shift"`` or ``"scale and shift"``. ``merged_into`` names the norm of the same value,
    by its module or its node, that is computed in the place of this one. ``lowering`` says what runs the norm
    that is left, ``"inductor"``, ``"triton"``, ``"deferred"`` or ``"linear_rms_norm"``, and why. ``time`` is
    what it took before the rewrite, estimated in the unit of the report's, and ``saved`` what each call saves
    by the rewrite, estimated from sizes.
    """

    kind: str
    spec: Mapping[str, Any]
    module: str
    source: str
    spelling: str
    action: str = "kept"
    becomes: str = ""
    refusal: Refusal | None = None
    graph: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: dict[str, Refusal] = field(default_factory=dict)
    modulation: str = ""
    merged_into: str = ""
    lowering: str = "inductor"
    time: float = 0.0
    saved: Cost = Cost()

    @classmethod
    def of(cls, spec: NormSpec, module: str, source: str, spelling: str) -> Site:
        return cls(spec.kind, spec.to_dict(), module, source, spelling, becomes=spec.kind)

    @property
    def is_lowered(self) -> bool:
        """Whether something else than Inductor's own code runs the norm."""
        return not self.lowering.startswith("inductor")

    @property
    def certificate(self) -> dict[str, Any] | None:
        """That of the last rewrite, if there was one."""
        return self.rewrites[-1].certificate if self.rewrites else None

    @property
    def rules(self) -> list[str]:
        """The rules that changed the norm, in their order."""
        return [rewrite.rule for rewrite in self.rewrites]

    def refuse(self, refusal: Refusal, rule: str = "") -> None:
        """Record why the norm stays, where the first reason stands, or why ``rule`` leaves it as it is."""
        if rule:
            self.refusals[rule] = refusal
        if self.refusal is None and not self.rewrites:
            self.refusal = refusal

    def revert(self, refusal: Refusal) -> None:
        """Record that the norm stays because its rewritten form was measured and found wanting."""
        self.action, self.becomes, self.refusal = "reverted", self.kind, refusal
        self.merged_into = ""
        self.rewrites.clear()

    def convert(self, spec: NormSpec, rule: str, certificate: dict[str, Any]) -> None:
        """Record what the norm became, and why it may."""
        self._change("converted", spec.kind, rule, certificate)

    def fold(self, rule: str, certificate: dict[str, Any], left: NormSpec | None = None) -> None:
        """Record that weights do what the norm did, and why they may; ``left`` is what they leave of it."""
        self._change("folded", "" if left is None else left.kind, rule, certificate)

    def merge(self, rule: str, certificate: dict[str, Any], other: str) -> None:
        """Record that another norm, named by its module or node, does the work of this one, and why."""
        self.merged_into = other
        self._change("merged", self.becomes, rule, certificate)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rewrites = [rewrite._asdict() for rewrite in self.rewrites]
        return asdict(self) | {"spec": dict(self.spec), "rewrites": rewrites}

    def _change(self, action: str, becomes: str, rule: str, certificate: dict[str, Any]) -> None:
        self.rewrites.append(Rewrite(rule, certificate))
        self.refusals.pop(rule, None)
        self.action, self.becomes = min(action, self.action, key=ACTIONS.index), becomes
        if action == "converted" or not becomes:
            self.refusal = None


@dataclass
class Report:
    """The norms of one compiled, rewritten or explained model.

    ``seconds`` is the time that normfuse itself took, ``centrings`` the number of explicit
    mean subtractions put into the graphs, ``folded`` the number of weights with a folded copy, and
    ``copied_bytes`` the memory that these hold beside the originals: a compiled graph keeps both, a rewritten
    program only what is read. ``frozen`` is the number of graphs that were compiled with the weights in them,
    and ``frozen_bytes`` the memory of those that are stored in another order for it. Of several models or
    layers that share a graph the first one counts. ``errors`` holds, where the sites were verified, the error
    of the outputs over the original's, by the inputs.
    ``products`` holds, where the model is explained and its weights would become constants, the seconds that
    all products and convolutions take without that and with it, measured one by one.
    ``breaks`` are the places at which Dynamo broke the model into several graphs, each with its reason.
    ``time`` is what all operators took before the rewrite, estimated from their sizes in bytes of memory
    traffic that would take as long; None where an operator is not known. ``spent`` is what the explicit
    centrings add to each call. ``streams`` are the residual streams, and the other values that norms read, in
    the order in which the model runs.
    """

    sites: list[Site] = field(default_factory=list)
    target: str = "rms_norm"
    graphs: int = 0
    centrings: int = 0
    folded: int = 0
    copied_bytes: int = 0
    frozen: int = 0
    frozen_bytes: int = 0
    products: tuple[float, float] | None = None
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    breaks: list[str] = field(default_factory=list)
    time: float | None = 0.0
    spent: Cost = Cost()
    streams: list[list[Part]] = field(default_factory=list)

    @property
    def found(self) -> dict[str, int]:
        """How many norms of each kind the model was written with."""
        return dict(Counter(site.kind for site in self.sites))

    @property
    def changed_share(self) -> float | None:
        """The estimated share of the time that was in the norms that changed; None where it is not known."""
        if not self.time:
            return None
        return sum(site.time for site in self.sites if site.action not in ("kept", "reverted")) / self.time

    @property
    def after(self) -> dict[str, int]:
        """How many norms of each kind remain, those that are one function of one value each counted."""
        return dict(Counter(site.becomes for site in self.sites if site.becomes))

    @property
    def saved(self) -> Cost:
        """What all sites save together at each call, less what is spent for it."""
        return sum((site.saved for site in self.sites), Cost()) - self.spent

    def merge(self, other: Report) -> None:
        """Add the report of a further graph of the same model."""
        for site in other.sites:
            site.graph = self.graphs
        self.streams += [[part.shifted(len(self.sites)) for part in stream] for stream in other.streams]
        self.sites += other.sites
        self.graphs += max(other.graphs, 1)
        self.time = None if self.time is None or other.time is None else self.time + other.time
        self.centrings += other.centrings
        self.folded += other.folded
        self.copied_bytes += other.copied_bytes
        self.frozen += other.frozen
        self.frozen_bytes += other.frozen_bytes
        if other.products is not None:
            plain, frozen = self.products or (0.0, 0.0)
            self.products = (plain + other.products[0], frozen + other.products[1])
        self.seconds += other.seconds
        self.spent += other.spent
        self.notes += [n for n in other.notes if n not in self.notes]
        self.breaks += [b for b in other.breaks if b not in self.breaks]
        for inputs, ratio in other.errors.items():
            self.errors[inputs] = max(ratio, self.errors.get(inputs, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what :meth:`to_json` writes."""
        return {
            "found": self.found,
            "after": self.after,
            "target": self.target,
            "graphs": self.graphs,
            "centrings": self.centrings,
            "folded": self.folded,
            "copied_bytes": self.copied_bytes,
            "frozen": self.frozen,
            "frozen_bytes": self.frozen_bytes,
            "seconds_of_products": self.products,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "breaks": list(self.breaks),
            "changed_share_of_time": self.changed_share,
            "saved": asdict(self.saved),
            "errors": dict(self.errors),
            "sites": [site.to_dict() for site in self.sites],
            "streams": [[part.to_dict() for part in stream] for stream in self.streams],
        }

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_html(self, path: str | Path, *, model: str = "", verification: str = "") -> Path:
        """Write the report as one page, which needs no network; an existing file is replaced as a whole.

        ``model`` is its title, and ``verification`` what was verified, in words.
        """
        from normfuse.page.report import report_page

        return write_text(path, report_page(self, model, verification))

    def __str__(self) -> str:
        from normfuse.report_table import render

        return render(self)
