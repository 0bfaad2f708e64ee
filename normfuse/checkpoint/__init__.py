"""Checkpoint folders of ``transformers``: rewritten file by file, and loaded as their own class."""

from __future__ import annotations

from normfuse.checkpoint.loading import load_checkpoint
from normfuse.checkpoint.rewriting import RewrittenFolder, rewrite_folder

__all__ = ["RewrittenFolder", "load_checkpoint", "rewrite_folder"]
