"""Those who watch the pipeline: each sees the program between stages, and may forbid a site to change."""

from __future__ import annotations

from typing import Protocol

from normfuse.passes.work import Work

__all__ = ["Observer"]


class Observer(Protocol):
    """Called by the pipeline; the graph may be read and copied, not changed."""

    def stage(self, name: str, work: Work) -> None:
        """What the pipeline did last, in its order: "capture", when nothing is done yet, to "lower".

        From "lift" on every norm is a node with a site; rules that are forbidden then leave the site as it
        is. At "hoist" the rules have run and folded weights are inputs, and the norms are still nodes.
        """
