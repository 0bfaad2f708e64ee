"""How Inductor is asked to compile a graph with constant weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from normfuse.inductor_compat import quiet_choices

__all__ = ["TUNED", "quiet", "settings_for"]

#: What Inductor does at its fastest, for comparison.
TUNED = {"freezing": True, "max_autotune": True, "autotune_num_choices_displayed": 0}


def settings_for(given: Mapping[str, Any]) -> dict[str, Any]:
    """Inductor's settings, among which those that the user has given win.

    Kernels of Inductor's own (``max_autotune_gemm``) are not asked for: they add up number after number, and
    were found 3.5 times as far from float64 as the model itself, in a decode step of GPT-2 small.
    """
    return {"freezing": True, **given}


def quiet(settings: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Nothing is printed of a choice of kernels that the user has not asked for."""
    return quiet_choices() if settings.get("autotune_num_choices_displayed") == 0 else nullcontext()
