"""Print ``docs/changing-weights.md``."""

import sys

from tests.changes import ways  # noqa: F401
from tests.changes.registry import page

sys.stdout.write(page())
