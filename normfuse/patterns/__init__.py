"""Recognising norms: one file per family; nothing here changes a graph.

A new spelling is a transfer function (:func:`transfer`), a new operator that is a whole norm a
reader (:func:`reader`), and something new around a norm a piece (:func:`piece`). All three may be
registered from outside the package.
"""

from normfuse.patterns.affine import absorb, piece
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.facts import Fact, Facts, Stage, transfer
from normfuse.patterns.handwritten import find_facts, handwritten_norms
from normfuse.patterns.native import native_norms, reader
from normfuse.patterns.stored import stored_norms
from normfuse.patterns.surroundings import modulation, of_weight
from normfuse.patterns.unseen import unseen_norms

__all__ = [
    "Candidate",
    "Fact",
    "Facts",
    "Stage",
    "absorb",
    "find_facts",
    "handwritten_norms",
    "modulation",
    "native_norms",
    "of_weight",
    "piece",
    "reader",
    "stored_norms",
    "transfer",
    "unseen_norms",
]
