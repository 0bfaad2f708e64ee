"""Tables and result files without anything but Python, for machines where nothing can be installed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["aligned", "store"]


def aligned(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def store(path: Path, found: dict[str, Any]) -> None:
    """JSON with one line for each member of a list, so that a change shows what changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = [f"  {json.dumps(key)}: {_value(value)}" for key, value in found.items()]
    path.write_text("{\n" + ",\n".join(body) + "\n}\n", encoding="utf-8")


def _value(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n" + ",\n".join(f"    {json.dumps(one)}" for one in value) + "\n  ]"
