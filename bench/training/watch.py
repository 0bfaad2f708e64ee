"""What reaches each norm during training: how its statistics move, and how far single values stand out.

fluctuation = mean over steps and channels of |log(m_t / m_{t-1})|,   m = a channel's mean square in a batch
outlier     = largest |x| / sqrt(mean x^2) in evaluation
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

__all__ = ["Watch", "norms_of"]


class Watch:
    """Hooks on the norms of a model; call :meth:`close` in the end."""

    def __init__(self, norms: dict[str, nn.Module]) -> None:
        self._last: dict[str, Tensor] = {}
        self._moved: dict[str, list[float]] = {name: [] for name in norms}
        self._outliers: dict[str, float] = dict.fromkeys(norms, 0.0)
        self._handles = [m.register_forward_pre_hook(self._hook(name)) for name, m in norms.items()]

    def _hook(self, name: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach().reshape(-1, args[0].shape[-1])
            if module.training:
                self._train(name, x.square().mean(0).clamp(min=1e-30).log())
            else:
                rms = float(x.square().mean().sqrt())
                self._outliers[name] = max(self._outliers[name], float(x.abs().max()) / max(rms, 1e-30))

        return before

    def _train(self, name: str, logs: Tensor) -> None:
        if name in self._last:
            self._moved[name].append(float((logs - self._last[name]).abs().mean()))
        self._last[name] = logs

    def fluctuation(self) -> dict[str, float]:
        """One number for each norm."""
        return {name: math.fsum(v) / len(v) if v else 0.0 for name, v in self._moved.items()}

    def movements(self) -> list[float]:
        """One number for each step from the second on, the mean over norms."""
        return [round(math.fsum(step) / len(step), 6) for step in zip(*self._moved.values(), strict=True)]

    def forget_outliers(self) -> None:
        """Count from now on."""
        self._outliers = dict.fromkeys(self._outliers, 0.0)

    def outliers(self) -> dict[str, float]:
        """One number for each norm."""
        return dict(self._outliers)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """The norms by name, those inside of a norm left out."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if "Norm" in type(module).__name__ and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found
