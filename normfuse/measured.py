"""Figures that were measured on this machine, kept for other processes beside what Inductor compiles."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from normfuse.errors import InputError
from normfuse.files import write_text

__all__ = ["Figures", "keep_figures", "kept_figures", "quickest"]

log = logging.getLogger("normfuse")

Figures = tuple[dict[str, float], dict[str, float]]
"""Seconds, and distances from float64, by the name of what was measured."""


def quickest(found: Figures, plain: str, margin: float, error: float) -> str:
    """What takes the least time of all that are at most ``error`` times as far off as ``plain``.

    It has to take less than ``margin`` times the time of ``plain``, which is the answer otherwise.
    """
    seconds, errors = found
    fits = [name for name in seconds if name != plain and errors[name] <= error * errors[plain]]
    best = min(fits, key=seconds.__getitem__, default=plain)
    return best if seconds[best] < margin * seconds[plain] else plain


def kept_figures(file: Path, needed: Collection[str]) -> dict[str, Figures]:
    """What a file holds, by the keys of what was measured: nothing where it is damaged, or lacks one of the
    names that are ``needed``.
    """
    try:
        held = json.loads(file.read_text())
        return {
            key: (_each(seconds, needed), _each(errors, needed)) for key, (seconds, errors) in held.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def _each(held: Mapping[str, float], needed: Collection[str]) -> dict[str, float]:
    return {
        name: float(figure) for name, figure in ({name: held[name] for name in needed} | dict(held)).items()
    }


def keep_figures(file: Path, known: Mapping[str, Figures]) -> None:
    """Write all figures; where that is not possible they are measured again by the next process."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(known, indent=1))
    except (OSError, InputError) as error:
        log.info("what was measured is not kept: %s", error)
