"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from normfuse.rule_names import RULE_NAMES

__all__ = [
    "CRMS_BASIS", "DEBUG", "DTYPE", "HTML", "JSON", "ONLY", "QUIET", "SKIP", "SOURCE", "TARGET",
    "CrmsBasis", "Dtype", "Rule", "Target", "Verify", "as_list", "chosen",
]  # fmt: skip

SOURCE = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A .pt2 program, a checkpoint folder of transformers, or module.path:factory for Python code; "
        "the factory returns a model and its example inputs.",
        show_default=False,
    ),
]


class Target(str, Enum):
    """As in :mod:`normfuse.options`, which is not imported before a command runs."""

    RMS_NORM = "rms_norm"
    CRMS_NORM = "crms_norm"
    LAYER_NORM = "layer_norm"


class CrmsBasis(str, Enum):
    """As in :mod:`normfuse.options`."""

    DROP_LAST = "drop_last"
    ORTHONORMAL = "orthonormal"


class Verify(str, Enum):
    """As in :mod:`normfuse.options`."""

    OFF = "off"
    OUTPUT = "output"
    SITES = "sites"
    THOROUGH = "thorough"


Rule = Enum("Rule", {name.upper(): name for name in RULE_NAMES}, type=str)  # type: ignore[misc]


class Dtype(str, Enum):
    """As in :mod:`normfuse.sources`."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"


TARGET = Annotated[
    Target,
    typer.Option(
        help="What LayerNorms should become; crms_norm stores what they read in one coordinate less, "
        "layer_norm leaves them as they are."
    ),
]
CRMS_BASIS = Annotated[
    CrmsBasis | None,
    typer.Option(
        help="With --target crms_norm: drop_last leaves out the last coordinate, orthonormal keeps lengths. "
        "Without it: drop_last.",
        show_default=False,
    ),
]
ONLY = Annotated[list[Rule] | None, typer.Option(help="Apply this rule and no other; repeatable.")]
SKIP = Annotated[list[Rule] | None, typer.Option(help="Leave this rule out; repeatable.")]
DTYPE = Annotated[
    Dtype | None,
    typer.Option(
        help="Convert a Python model and its inputs to this dtype first. A .pt2 program cannot be converted.",
    ),
]
JSON = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to FILE.")]
HTML = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write a page to FILE.", show_default=False)
]
QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def as_list(rules: list[Rule] | None) -> list[str] | None:
    """Rules by name; None when there are none, which lets every rule run."""
    return [rule.value for rule in rules] if rules else None


def chosen(dtype: Dtype | None) -> str | None:
    """The dtype by name, if any."""
    return None if dtype is None else dtype.value
