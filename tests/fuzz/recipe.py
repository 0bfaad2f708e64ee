"""What a random network is made of: plain numbers, so that a failure can be stored and read by anyone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

__all__ = ["Recipe", "Step"]


@dataclass(frozen=True)
class Step:
    """One piece of a network.

    ``kind`` and ``variant`` name it; ``source`` and ``target`` choose among the values that exist, the
    latest first, and wrap around, so that every recipe is a network and removing a step leaves one.
    """

    kind: str
    variant: str
    source: int = 0
    target: int = 0
    join: str = "add"
    tie: bool = False


@dataclass(frozen=True)
class Recipe:
    """A network and what it is run on.

    ``alias`` says that a tied weight is a second input over the same memory, as ``torch.export`` has it,
    ``dynamic`` that batch and tokens are symbols, ``raw`` that an un-normalized stream is returned.
    """

    steps: tuple[Step, ...]
    width: int = 4
    batch: int = 2
    tokens: int = 3
    seed: int = 0
    alias: bool = False
    dynamic: bool = False
    raw: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        plain = json.loads(text)
        return cls(**{**plain, "steps": tuple(Step(**s) for s in plain["steps"])})
