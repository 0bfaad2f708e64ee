"""Kernels as they are compiled for a width, a dtype and a device, without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from normfuse.kernels.code.backward import backward_rows
from normfuse.kernels.code.backward_wide import backward_wide
from normfuse.kernels.code.columns import backward_columns
from normfuse.kernels.code.forward import forward_rows
from normfuse.kernels.code.forward_wide import forward_wide
from normfuse.kernels.code.product import linear_rows
from normfuse.kernels.plan import Plan, backward_plan, column_plan, forward_plans, linear_plans
from normfuse.kernels.reference import CRMS, LAYER, RMS

__all__ = ["DTYPES", "FORMS", "TARGETS", "WIDTHS", "Subject", "linear_subjects", "norm_subjects"]

DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4}
TARGETS = (80, 90, 100)
WIDTHS = (128, 1000, 1024, 4096, 5120, 8192, 16384, 65536)
#: What takes part: the kind, and which of the arguments that may be None are there.
FORMS: dict[str, tuple[int, tuple[str, ...]]] = {
    "rms_norm": (RMS, ("weight",)),
    "layer_norm": (LAYER, ("weight", "bias")),
    "crms_norm": (CRMS, ("weight",)),
    "add_rms_norm": (RMS, ("weight", "residual", "total", "dtotal")),
    "add_layer_norm": (LAYER, ("weight", "bias", "residual", "total", "dtotal")),
    "gated_rms_norm": (RMS, ("weight", "gate", "dgate")),
}
_OPTIONAL = {"weight", "bias", "residual", "total", "dtotal", "gate", "dgate", "drstds"}
_FLOAT32 = ("centres", "rstds", "drstds", "weight_sums", "bias_sums")


@dataclass(frozen=True)
class Subject:
    """One kernel with everything that its code depends on."""

    name: str
    kernel: Any
    width: int
    dtype: str
    constants: dict[str, Any]
    warps: int
    stages: int = 3
    is_aligned: bool = True

    @property
    def types(self) -> dict[str, str]:
        """Triton's name of the type of each argument that is known at the call only."""
        return {name: self._type(name) for name in self.kernel.arg_names if name not in self.constants}

    def _type(self, name: str) -> str:
        if name in ("rows", "outputs") or name.endswith("stride"):
            return "i32"
        if name == "eps":
            return "fp32"
        return "*fp32" if name in _FLOAT32 else f"*{DTYPES[self.dtype]}"


def norm_subjects(form: str, width: int, dtype: str, is_aligned: bool = True) -> Iterator[Subject]:
    """The kernels of one norm, forward and backward: each entry of the short lists."""

    def subject(what: str, kernel: Any, cut: Plan) -> Subject:
        constants = {k: v for k, v in _constants(form, width, cut).items() if k in kernel.arg_names}
        return Subject(f"{form} {what}", kernel, width, dtype, constants, cut.warps, is_aligned=is_aligned)

    for plan in forward_plans(width):
        yield subject("forward", forward_wide if plan.is_wide else forward_rows, plan)
    plan = backward_plan(width, SIZES[dtype])
    yield subject("backward", backward_wide if plan.is_wide else backward_rows, plan)
    if plan.is_wide:
        yield subject("columns", backward_columns, column_plan(width))


def linear_subjects(
    rows: int, width: int, outputs: int, dtype: str, adds: bool = False, precision: str = "ieee"
) -> Iterator[Subject]:
    """Each entry of the short list for ``rows`` rows."""
    absent = {} if adds else dict.fromkeys(("residual", "total"))
    said = f"{'add_' if adds else ''}linear_rms_norm"
    for plan in linear_plans(rows, outputs, SIZES[dtype]):
        blocks = {"BLOCK_M": plan.block_m, "BLOCK_N": plan.block_n, "BLOCK_K": plan.block_k}
        constants = {**absent, "WIDTH": width, "PRECISION": precision, **blocks}
        name = f"{said} {plan.block_m}x{plan.block_n}x{plan.block_k}{' tf32' * (precision == 'tf32')}"
        yield Subject(name, linear_rows, width, dtype, constants, plan.warps, plan.stages)


def _constants(form: str, width: int, cut: Plan) -> dict[str, Any]:
    kind, there = FORMS[form]
    absent: dict[str, Any] = dict.fromkeys(_OPTIONAL.difference(there))
    if kind == RMS:
        absent["centres"] = None
    if "bias" not in there:
        absent["bias_sums"] = None
    sizes = {"WIDTH": width, "GROUPS": 1, "ROWS": cut.rows, "BLOCK": cut.block}
    return {**absent, "KIND": kind, "OFFSET": 0.0, "GATE_FIRST": False, **sizes}
