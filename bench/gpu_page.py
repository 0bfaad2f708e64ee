"""The table of ``docs/gpu.md``, from the stored counts.

python -m bench.gpu_page
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PAGE", "current", "main"]

_ROOT = Path(__file__).resolve().parents[1]
PAGE = _ROOT / "docs" / "gpu.md"
_FOUND = _ROOT / "bench" / "results" / "kernels" / "codegen.json"
_BEGIN, _END = "<!-- counts -->\n\n", "\n<!-- end of counts -->\n"
#: The others are in the stored file.
_SHOWN = (1024, 4096, 8192)
_HEADER = ("model", "work", "d", "norms", "kernels", "calls", "MB moved", "norms' MB", "norms' microseconds")


def current() -> str:
    """The page with the table of the counts that are stored."""
    text, found = PAGE.read_text(encoding="utf-8"), json.loads(_FOUND.read_text(encoding="utf-8"))
    before, rest = text.split(_BEGIN)
    return before + _BEGIN + _table(found["blocks"]) + _END + rest.split(_END)[1]


def _table(blocks: Sequence[Mapping[str, Any]]) -> str:
    rows = [_HEADER, ["---"] * len(_HEADER), *(_row(one) for one in blocks if one["d"] in _SHOWN)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    moved = (one["kernel_bytes"] + one["call_bytes"]) / 1e6
    place = (one["model"], one["work"], f"{one['d']:,}", one["block"], str(one["kernels"]), str(one["calls"]))
    return (*place, f"{moved:,.2f}", f"{one['norm_bytes'] / 1e6:.3f}", f"{one['norm_microseconds']:.2f}")


def main() -> None:
    """Write the page."""
    PAGE.write_text(current(), encoding="utf-8")


if __name__ == "__main__":
    main()
