"""Exported programs as files."""

from __future__ import annotations

from normfuse.pt2.store import load_program, save_program

__all__ = ["load_program", "save_program"]
