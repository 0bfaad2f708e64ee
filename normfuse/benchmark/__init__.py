"""How long a model takes eager, under Inductor, under normfuse, and without its norms.

The protocol is made for noisy machines; :mod:`normfuse.benchmark.timing` says how.
"""

from __future__ import annotations

from normfuse.benchmark.result import BenchResult
from normfuse.benchmark.run import bench

__all__ = ["BenchResult", "bench"]
