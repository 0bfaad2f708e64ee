"""One process of a measurement: ``python -m normfuse.benchmark.child SETTINGS [CONTENDER]``.

Prints its rounds, or the costs of the contender, as JSON on the last line.
"""

from __future__ import annotations

import json
import sys

from normfuse.benchmark.measure import measure_cost, measure_rounds
from normfuse.benchmark.settings import Settings
from normfuse.errors import NormfuseError

__all__ = ["main"]


def main(settings: str, *names: str) -> int:
    """Measure; an error of ours is one line on standard error."""
    asked = Settings.from_json(settings)
    try:
        if names:
            text = json.dumps(measure_cost(asked, names[0]).to_dict())
        else:
            text = measure_rounds(asked).to_json()
    except NormfuseError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(f"\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
