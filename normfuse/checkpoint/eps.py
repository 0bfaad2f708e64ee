"""Every eps of a ``config.json`` is a number that may stand below a root."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from normfuse.errors import InputError

__all__ = ["check_eps"]

_EPS = re.compile(r"(^|_)eps(ilon)?$")


def check_eps(config: Mapping[str, Any], file: Path) -> None:
    """Refuse an eps below zero, one that is no number, and nan; None leaves it to the class.

    Raises:
        InputError: naming the entry and what it holds.
    """
    for name, value in _entries(config):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (is_number and not math.isnan(value) and value >= 0):
            raise InputError(
                f"{file} gives {value!r:.40} as {name}, which is no eps; make it a number above 0"
            )


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    stack: list[Mapping[str, Any]] = [config]
    while stack:
        for name, value in stack.pop().items():
            if isinstance(value, Mapping):
                stack.append(value)
            elif _EPS.search(name):
                yield name, value
