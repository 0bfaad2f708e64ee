"""Roots that scale a tensor and are no norms, with the cause; judged by hand, from the models' source."""

from __future__ import annotations

import re

__all__ = ["cause"]

_CAUSES = (
    (r"layers\.grn ", "global response normalization: what is divided is the length, not the vector"),
    (r"inkling2.*l2_clip", "clips the length: shorter vectors stay as they are"),
    (r"pocket_tts.*Timestep|pocket_tts.*timestep", "unbiased variance, and no mean is removed"),
)


def cause(architecture: str, described: str) -> str | None:
    """Why a root is no norm; None when nobody has said so."""
    text = f"{architecture} {described}"
    return next((why for pattern, why in _CAUSES if re.search(pattern, text)), None)
