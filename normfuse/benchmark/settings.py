"""What to measure, as values that travel to other processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from normfuse.errors import InputError

__all__ = ["BASELINE", "CONTENDERS", "NO_NORMS", "Settings"]

BASELINE = "inductor"
NO_NORMS = "norms deleted"
FROZEN = "inductor, frozen"
NO_NORMS_FROZEN = "norms deleted, frozen"
ONNX = "onnxruntime"
#: In this order in tables. The baseline is always among them.
CONTENDERS = ("eager", BASELINE, "normfuse", NO_NORMS, FROZEN, NO_NORMS_FROZEN, ONNX)


@dataclass(frozen=True)
class Settings:
    """One measurement.

    Attributes:
        source: a ``.pt2`` file or ``module.path:factory``; empty for a model of this process.
        batch_size: leading size of the inputs; None leaves the example inputs as they are.
        training: a forward and a backward pass instead of inference.
        device, dtype: where and in which dtype; None leaves the dtype alone.
        threads: number of threads; None is PyTorch's default.
        seconds: time of one process, without compiling.
        contenders: names out of ``CONTENDERS``.
    """

    source: str = ""
    batch_size: int | None = None
    training: bool = False
    device: str = "cpu"
    dtype: str | None = None
    threads: int | None = None
    seconds: float = 10.0
    contenders: tuple[str, ...] = CONTENDERS[:4]

    def __post_init__(self) -> None:
        unknown = [name for name in self.contenders if name not in CONTENDERS]
        if unknown:
            raise InputError(f"there is no contender {unknown[0]!r}; choose one of {', '.join(CONTENDERS)}")
        if BASELINE not in self.contenders:
            raise InputError(f"the contenders need {BASELINE}, which the others are compared with")
        for name in (FROZEN, NO_NORMS_FROZEN, ONNX) if self.training else ():
            if name in self.contenders:
                raise InputError(f"{name} does not train")
        kind, _, number = self.device.partition(":")
        if kind not in ("cpu", "cuda") or not (number.isdecimal() or ":" not in self.device):
            raise InputError(f"the device is cpu, cuda or one like cuda:1, not {self.device!r}")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"a batch holds at least one example, not {self.batch_size}")
        if self.seconds <= 0:
            raise InputError(f"the time per process has to be positive, not {self.seconds}")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        held: dict[str, Any] = json.loads(text)
        return cls(**{**held, "contenders": tuple(held["contenders"])})
