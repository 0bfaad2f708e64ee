"""Numbers of a ``config.json``: an eps stands below a root, and layers are no more than can be made."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from normfuse.errors import InputError

__all__ = ["check_numbers"]

_EPS = re.compile(r"(^|_)eps(ilon)?$")
#: A class makes modules or texts for each, one after the other; no model has so many.
_MOST = ((re.compile(r"(^|_)layers?$"), 10_000), (re.compile(r"^num_labels$"), 10_000_000))


def check_numbers(config: Mapping[str, Any], file: Path) -> None:
    """Refuse an eps below zero, one that is no number, and nan, and numbers of layers that nothing can hold.

    Raises:
        InputError: naming the entry and what it holds.
    """
    for name, value in _entries(config):
        if _EPS.search(name) and value is not None and not _is_eps(value):
            raise InputError(
                f"{file} gives {value!r:.40} as {name}, which is no eps; make it a number above 0"
            )
        for names, most in _MOST:
            if names.search(name) and isinstance(value, (int, float)) and value > most:
                raise InputError(
                    f"{file} gives {value!r:.40} as {name}, and {most:,} are the most that are read"
                )


def _is_eps(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and not math.isnan(value) and value >= 0


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    stack: list[Mapping[str, Any]] = [config]
    while stack:
        for name, value in stack.pop().items():
            if isinstance(value, Mapping):
                stack.append(value)
            yield name, value
