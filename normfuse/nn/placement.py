"""Where a norm stands beside a sublayer F and its residual connection."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from normfuse.errors import OptionError
from normfuse.nn.options import check_count

__all__ = ["DepthScaledNorm", "NormFactory", "PeriNorm", "PostNorm", "PreNorm", "mix_norm"]

NormFactory = Callable[[], nn.Module]
"""Makes a new norm at each call, for example ``lambda: nn.RMSNorm(512)``."""


class _Placed(nn.Module):
    """A sublayer and a norm; further arguments of a call go to the sublayer."""

    def __init__(self, norm: NormFactory, sublayer: nn.Module) -> None:
        super().__init__()
        if isinstance(norm, nn.Module):
            raise OptionError(
                f"{type(self).__name__} takes a function that makes a norm, and this is one already; write "
                f"lambda: {type(norm).__name__}(...)"
            )
        self.norm = norm()
        self.sublayer = sublayer
        if not isinstance(self.norm, nn.Module):
            raise OptionError(
                f"{type(self).__name__} takes a function that makes a norm, and this one made a "
                f"{type(self.norm).__name__}"
            )


class PreNorm(_Placed):
    """``x + F(N(x))``.

    From "On Layer Normalization in the Transformer Architecture" (Xiong et al. 2020, arXiv 2002.04745,
    section 3).

    Args:
        norm: makes the norm.
        sublayer: F; further arguments of a call go to it.

    Raises:
        OptionError: where ``norm`` is a module, or makes none.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = x + self.sublayer(self.norm(x), *args, **kwargs)
        return result


class PostNorm(_Placed):
    """``N(x + F(x))``.

    From "Attention Is All You Need" (Vaswani et al. 2017, arXiv 1706.03762, section 3.1). Args and errors:
    as in :class:`PreNorm`.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.norm(x + self.sublayer(x, *args, **kwargs))
        return result


class PeriNorm(_Placed):
    """``x + N_out(F(N(x)))``.

    From "Peri-LN: Revisiting Normalization Layer in the Transformer Architecture" (Kim et al. 2025, arXiv
    2502.02732, section 3), which also normalizes the embedding and the last output. The factory makes both
    norms. Args and errors: as in :class:`PreNorm`.
    """

    def __init__(self, norm: NormFactory, sublayer: nn.Module) -> None:
        super().__init__(norm, sublayer)
        self.output_norm = norm()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = x + self.output_norm(self.sublayer(self.norm(x), *args, **kwargs))
        return result


class DepthScaledNorm(_Placed):
    """``x + F(N(x) / sqrt(layer))``.

    From "The Curse of Depth in Large Language Models" (Sun et al. 2025, arXiv 2502.05795, section 4), for
    any norm.

    Args:
        norm: makes the norm.
        sublayer: F; further arguments of a call go to it.
        layer: the number of the block, counted from one.

    Raises:
        OptionError: for a layer that is no whole number of at least 1, and where ``norm`` makes no module.
    """

    def __init__(self, norm: NormFactory, sublayer: nn.Module, layer: int) -> None:
        super().__init__(norm, sublayer)
        self.layer = check_count(self, "layer", layer)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        normalized = self.norm(x) * (1.0 / math.sqrt(self.layer))
        result: Tensor = x + self.sublayer(normalized, *args, **kwargs)
        return result

    def extra_repr(self) -> str:
        return f"layer={self.layer}"


def mix_norm(
    norm: NormFactory, sublayer: nn.Module, layer: int, num_layers: int, alpha: float = 0.25
) -> PostNorm | PreNorm:
    """:class:`PostNorm` in the first ``floor(alpha num_layers)`` layers, :class:`PreNorm` in the others.

    From "Mix-LN: Unleashing the Power of Deeper Layers by Combining Pre-LN and Post-LN" (Li et al. 2024,
    arXiv 2412.13795, section 3).

    Args:
        norm: makes the norm.
        sublayer: F; further arguments of a call go to it.
        layer: the number of the block, counted from one.
        num_layers: how many there are.
        alpha: as it is written in decimals, so that 0.29 of 100 layers are 29.

    Raises:
        OptionError: for a layer that is not there, or an alpha outside of 0 to 1.
    """
    if not all(type(count) is int for count in (layer, num_layers)) or not 1 <= layer <= num_layers:
        raise OptionError(f"mix_norm: layers count from 1 to {num_layers!r}; there is no {layer!r}")
    if not 0 <= alpha <= 1:
        raise OptionError(f"mix_norm: alpha is a number from 0 to 1, not {alpha!r}")
    place = PostNorm if layer <= math.floor(Fraction(str(alpha)) * num_layers) else PreNorm
    return place(norm, sublayer)
