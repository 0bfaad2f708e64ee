"""The modules of a model that compute something else after ``normfuse.apply``, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.utils.hooks import RemovableHandle

from normfuse.in_place.centred_layer_norm import CentredLayerNorm
from normfuse.rms_norm import centre

__all__ = ["Parts"]


@dataclass
class Parts:
    """By name: LayerNorms that compute an RMSNorm, and lookups behind which a mean is taken away.

    Each stays the same object, with all that it holds.
    """

    norms: Mapping[str, nn.LayerNorm] = field(default_factory=dict)
    lookups: Mapping[str, nn.Embedding] = field(default_factory=dict)
    _hooks: list[RemovableHandle] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.norms)

    def lines(self) -> list[str]:
        """What there is to say of them."""
        lines = [f"{len(self.norms)} LayerNorm modules compute an RMSNorm now"] if self.norms else []
        return lines + [f"what {path} looks up loses its mean" for path in self.lookups]

    def put(self) -> None:
        """Let them compute that."""
        for norm in self.norms.values():
            norm.__class__ = CentredLayerNorm
        self._hooks = [lookup.register_forward_hook(centre) for lookup in self.lookups.values()]

    def take_back(self) -> None:
        """Let them compute what they did."""
        for norm in self.norms.values():
            norm.__class__ = nn.LayerNorm
        for hook in self._hooks:
            hook.remove()
