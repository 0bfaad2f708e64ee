"""What the passes hand to one another: the program, its norms, and the record of what happened."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch.fx import Node

from normfuse.analysis.channel_map import ChannelMap
from normfuse.analysis.reads import Read
from normfuse.folding import Folded
from normfuse.ir.program import Program
from normfuse.options import Options
from normfuse.report import Cost, Report, Site

__all__ = ["Dropped", "Restored", "Shifted", "Work"]


@dataclass(frozen=True)
class Shifted:
    """A reader of ``norm`` whose bias, ``before``, took what its weight makes of the norm's shift."""

    norm: Node
    read: Read
    before: Node | None


@dataclass(frozen=True)
class Restored:
    """What a norm returned once: ``maps``, innermost first, of ``value`` along ``axis``.

    ``is_blurred`` says that one entry adds up the rounding errors of the others. It alone would look wrong;
    what its readers make of it is judged by what they give.
    """

    value: Node
    axis: int
    maps: tuple[ChannelMap, ...]
    is_blurred: bool = False


@dataclass(frozen=True)
class Dropped:
    """By name: a norm that was left out, what stands for it, operators on the way to norms, and these."""

    norm: str
    value: str
    path: tuple[str, ...]
    ends: tuple[str, ...]


@dataclass
class Work:
    """One program on its way through the pipeline.

    ``sites`` maps each lifted norm's node to its record, in execution order. ``streams`` numbers the
    streams: norms of one number may depend on the same changed weights. ``precise`` asks for the most exact
    of several forms at any price; ``shifts_in_biases`` counts where that would make a difference.
    ``written`` maps nodes that have the value of a norm, since weights before them took it, to its record.
    ``restored`` says of a norm of which readers took a part how its value comes back.
    ``same`` are the norms that are no longer there, with the node that has the value of each, or of its core.
    ``folded`` are the weights to fold, of which the program has further inputs once they are hoisted.
    ``costs`` says, by the ``id`` of a site, what its norm took before any rule ran.
    ``lowered`` says what has the values of the nodes that are gone once norms are written as what runs them.
    ``shifted`` are the readers of norms that took a shift.
    ``dropped`` are the norms that an approximate rule left out.
    ``forbidden`` are pairs of the ``id`` of a site and the name of a rule that must leave it as it is.
    """

    program: Program
    options: Options
    report: Report = field(default_factory=Report)
    sites: dict[Node, Site] = field(default_factory=dict)
    streams: dict[Node, int] = field(default_factory=dict)
    precise: bool = False
    shifts_in_biases: int = 0
    written: dict[Node, Site] = field(default_factory=dict)
    restored: dict[Node, Restored] = field(default_factory=dict)
    same: list[tuple[Site, Node, Restored | None]] = field(default_factory=list)
    folded: list[Folded] = field(default_factory=list)
    costs: dict[int, Cost] = field(default_factory=dict)
    lowered: dict[Node, Node] = field(default_factory=dict)
    shifted: list[Shifted] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    forbidden: set[tuple[int, str]] = field(default_factory=set)

    def record(self, node: Node, site: Site) -> None:
        self.sites[node] = site
        self.report.sites.append(site)

    def forbid(self, site: Site, rule: str) -> None:
        """Ask a rule to leave one norm as it is."""
        self.forbidden.add((id(site), rule))

    def may(self, node: Node, rule: str) -> bool:
        """Whether a rule may change the norm at ``node``."""
        return (id(self.sites[node]), rule) not in self.forbidden

    def leave_out(self, norm: Node, value: Node) -> Site:
        """Let all that reads a norm read ``value`` in its place; returns its record, which is done with."""
        norm.replace_all_uses_with(value)
        norm.graph.erase_node(norm)
        return self.sites.pop(norm)

    def restore(
        self, norm: Node, value: Node, axis: int, maps: tuple[ChannelMap, ...] = (), is_blurred: bool = False
    ) -> None:
        """Tell how the value comes back that a norm returned before the last change of it."""
        before = self.restored.get(norm)
        whole = (*maps, *(() if before is None else before.maps))
        self.restored[norm] = Restored(value, axis, whole, is_blurred)

    def merged(self, old: Node, new: Node) -> None:
        """Tell that the norm at ``new`` is also the one that was at ``old``."""
        how = self.restored.pop(old, None)
        if how is not None and how.value is old:
            how = replace(how, value=new)
        self.same.append((self.sites.pop(old), new, how))

    def moved(self, old: Node, new: Node) -> None:
        """Tell that the norm at ``old`` is now at ``new``."""
        self.sites[new] = self.sites.pop(old)
        if old in self.restored:
            self.restored[new] = self.restored.pop(old)
