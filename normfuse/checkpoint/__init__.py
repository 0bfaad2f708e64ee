"""Checkpoint folders of ``transformers``: rewritten file by file, and loaded as their own class."""

from __future__ import annotations

from normfuse.checkpoint.loading import load_checkpoint
from normfuse.checkpoint.rewriting import RewrittenFolder, explain_folder, rewrite_folder

__all__ = ["RewrittenFolder", "explain_folder", "load_checkpoint", "rewrite_folder"]
