"""Somebody who watches the pipeline: sees the program between stages, and may forbid a site to change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from normfuse.folding import Folded
from normfuse.passes.work import Work

__all__ = ["Observer"]


class Observer(Protocol):
    """Called by the pipeline; the graph may be read and copied, not changed."""

    def lifted(self, work: Work) -> None:
        """Every norm is a node with a site. A site that is refused or reverted now will not be changed."""

    def rewritten(self, work: Work, folded: Sequence[Folded]) -> None:
        """The rules have run and folded weights are inputs; the norms are still nodes."""
