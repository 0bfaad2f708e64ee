"""Recognising norms: one file per family; nothing here changes a graph."""

from normfuse.patterns.affine import absorb
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.handwritten import find_facts, handwritten_norms
from normfuse.patterns.native import native_norms
from normfuse.patterns.stored import stored_norms

__all__ = ["Candidate", "absorb", "find_facts", "handwritten_norms", "native_norms", "stored_norms"]
