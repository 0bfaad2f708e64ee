"""How Inductor is asked to compile a graph with constant weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from normfuse.freezing.products import Product
from normfuse.inductor_compat import quiet_choices

__all__ = ["quiet", "settings_for"]

#: A product of so few rows is bound by reading the weight, and Inductor's own kernel is about twice as fast.
FEW_ROWS = 32
#: Kernels for so many products of different sizes are compiled and measured, at two to four seconds each.
MANY_SHAPES = 12
_AUTOTUNES = ("max_autotune", "max_autotune_gemm")


def settings_for(products: Sequence[Product], given: Mapping[str, Any]) -> dict[str, Any]:
    """Inductor's settings, among which those that the user has given win."""
    settings: dict[str, Any] = {"freezing": True}
    shapes = {_shape(p) for p in products if p.rows <= FEW_ROWS and not p.is_convolution}
    if 0 < len(shapes) <= MANY_SHAPES and not any(name in given for name in _AUTOTUNES):
        settings |= {"max_autotune_gemm": True, "autotune_num_choices_displayed": 0}
    return settings | dict(given)


def _shape(product: Product) -> tuple[Any, ...]:
    weight = product.weight.meta["val"]
    return product.rows, tuple(weight.shape), weight.dtype


def quiet(settings: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Nothing is printed of a choice of kernels that the user has not asked for."""
    return quiet_choices() if settings.get("autotune_num_choices_displayed") == 0 else nullcontext()
