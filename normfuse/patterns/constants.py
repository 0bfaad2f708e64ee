"""The numbers of a norm, written in one way for equal functions.

post_factor * x / sqrt(S / divisor + eps)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.fx import Node

from normfuse.ir.changed import changed

__all__ = ["Constants"]

_CLOSE = 1e-12


@dataclass(frozen=True)
class Constants:
    """``divisor`` is None for the number of elements; ``eps`` stands where ``eps_mode`` says."""

    divisor: float | None
    eps: float | Node
    eps_mode: str
    post_factor: float = 1.0

    @property
    def whole_divisor(self) -> int | None:
        """The divisor as a description has it; after :meth:`canonical` it is a whole number."""
        return None if self.divisor is None else round(self.divisor)

    @property
    def kind(self) -> str:
        """The kind of a norm that removes no mean."""
        return "l2_norm" if self.divisor == 1 else "rms_norm"

    def canonical(self, elements: int | None) -> Constants:
        """Divide by the number of elements or by one where the factor allows it, else keep the factor.

        A divisor that is no whole number goes into the factor.
        """
        bare = changed(self, eps_mode="inside") if self.eps == 0 else self
        if not elements:
            return bare
        divisor = float(elements) if self.divisor is None else self.divisor
        for whole in (elements, 1):
            joins = not (isinstance(self.eps, Node) and self.post_factor != 1)
            if joins and math.isclose(divisor * self.post_factor**2, whole, rel_tol=_CLOSE):
                made = bare if self.post_factor == 1 else bare._with_root_times(divisor / whole)
                return changed(made, post_factor=1.0)._named(whole, elements)
        whole = round(divisor)
        if math.isclose(divisor, whole, rel_tol=_CLOSE) or isinstance(self.eps, Node):
            return bare._named(whole, elements)
        return bare._with_root_times(divisor / elements)._named(elements, elements)

    def _named(self, divisor: int, elements: int) -> Constants:
        return changed(self, divisor=None if divisor == elements else divisor)

    def _with_root_times(self, square: float) -> Constants:
        """The same function with ``sqrt(square)`` times the root, and so much more in front.

        Fifteen digits of eps are what equal functions share.
        """
        eps = self.eps
        if not isinstance(eps, Node):
            eps = float(f"{eps * (square if self.eps_mode == 'inside' else math.sqrt(square)):.15g}")
        return changed(self, eps=eps, post_factor=self.post_factor * math.sqrt(square))
