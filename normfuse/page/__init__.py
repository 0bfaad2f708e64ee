"""Pages of results: one file each, which needs no network and holds nothing that is not escaped.

They are made by functions and not by a template engine: the package needs no further dependency, arguments
are checked as all others are, and what a model calls its modules cannot become markup.
"""

from __future__ import annotations

__all__: list[str] = []
