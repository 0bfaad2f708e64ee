"""Pages of results: one file each, which needs no network and holds nothing that is not escaped."""

from __future__ import annotations

__all__: list[str] = []
