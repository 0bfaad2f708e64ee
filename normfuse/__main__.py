"""``python -m normfuse``: the command line."""

from __future__ import annotations

from normfuse.cli.app import main

if __name__ == "__main__":
    main()
