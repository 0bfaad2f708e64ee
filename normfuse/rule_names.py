"""The rules by name, in the order in which they run.

Each is described and done by the module of its name in :mod:`normfuse.passes`. The names stand here, where
they cost nothing to import, because options and the command line offer them before anything runs.
"""

from __future__ import annotations

__all__ = ["RULE_NAMES"]

RULE_NAMES = (
    "drop_inner",
    "fold_constants",
    "fold_affine",
    "recentre",
    "fold_factor",
    "fold_nested",
    "fold_scale",
    "carry_shift",
    "compress",
    "rotate",
    "merge_norms",
)
