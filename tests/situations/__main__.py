"""Write the page: ``python -m tests.situations > docs/situations.md``."""

from __future__ import annotations

from tests.situations import operators, pieces, serving, shapes, training  # noqa: F401
from tests.situations.registry import page

print(page(), end="")  # noqa: T201
