"""How Inductor is asked to compile a graph with constant weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from normfuse.freezing.products import Product

__all__ = ["quiet", "settings_for"]

#: A product of so few rows is bound by reading the weight, and Inductor's own kernel is about twice as fast.
FEW_ROWS = 32
#: Kernels for so many products of different sizes are compiled and measured, at two to four seconds each.
_MANY_SHAPES = 12
_AUTOTUNES = ("max_autotune", "max_autotune_gemm")


def settings_for(products: Sequence[Product], given: Mapping[str, Any]) -> dict[str, Any]:
    """Inductor's settings, among which those that the user has given win."""
    settings: dict[str, Any] = {"freezing": True}
    shapes = {_shape(p) for p in products if p.rows <= FEW_ROWS and not p.is_convolution}
    if 0 < len(shapes) <= _MANY_SHAPES and not any(name in given for name in _AUTOTUNES):
        settings |= {"max_autotune_gemm": True, "autotune_num_choices_displayed": 0}
    return settings | dict(given)


def _shape(product: Product) -> tuple[Any, ...]:
    weight = product.weight.meta["val"]
    return product.rows, tuple(weight.shape), weight.dtype


@contextmanager
def quiet(settings: Mapping[str, Any]) -> Iterator[None]:
    """Nothing is printed of a choice of kernels that the user has not asked for."""
    if settings.get("autotune_num_choices_displayed") != 0:
        yield
        return
    import torch._inductor.select_algorithm as selection

    with (
        warnings.catch_warnings(),
        mock.patch.object(selection, "_log_autotune_choices_stats", _say_nothing, create=True),
    ):
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        yield


def _say_nothing(*args: Any, **kwargs: Any) -> None:
    return None
