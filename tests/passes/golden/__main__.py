"""``python -m tests.passes.golden``: write every file anew; what changed is for a person to read."""

from __future__ import annotations

import sys

from tests.passes.golden.cases import FOLDER, FOUND

__all__ = ["main"]


def main() -> None:
    """Write the files of all cases, and remove those of none."""
    for path in FOLDER.glob("*.txt"):
        if path not in {case.path for case in FOUND}:
            path.unlink()
    for case in FOUND:
        text = case.text()
        if not case.path.exists() or case.path.read_text(encoding="utf-8") != text:
            case.path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"written: {case.path.name}\n")


if __name__ == "__main__":
    main()
