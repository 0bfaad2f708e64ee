"""The papers' equations, written out in NumPy with branches in Python, and nothing of the layers in them.

Inputs are (tokens, channels) in float64; ``valid`` is a bool per token. A reference keeps its own state, and
``step`` returns the output and the gradients of one training step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class UnifiedReference:
    """Unified normalization, arXiv 2208.01313."""

    channels: int
    forward_window: int
    backward_window: int
    warmup: int
    filters: bool
    eps: float = 1e-5
    momentum: float = 0.9

    def __post_init__(self) -> None:
        self.t = self.skipped = 0
        self.running = np.ones(self.channels)
        self.ema = np.zeros(self.channels)
        self.x2s = np.zeros((self.forward_window, self.channels))
        self.gzs = np.zeros((self.backward_window, self.channels))

    def step(self, x: Any, dy: Any, weight: Any, bias: Any, valid: Any) -> tuple[Any, Any, Any, Any]:
        self.t += 1
        t, m_f, m_b = self.t, self.forward_window, self.backward_window
        n = valid.sum()
        x2 = (x[valid] ** 2).sum(0) / n
        variance = np.var(np.sqrt(self.x2s), ddof=1) if self.x2s.size > 1 else 0.0
        self.x2s[t % m_f] = x2
        skip = m_f == 1
        if self.filters and t >= self.warmup and t > m_f and m_f > 1:
            arithmetic = self.x2s.mean(0)
            geometric = np.prod(self.x2s, axis=0) ** (1 / m_f)
            if np.any(arithmetic - geometric > m_f * variance):
                skip = True
                self.skipped += 1
                self.x2s[t % m_f] = self.running
        s2 = x2 if skip or t <= m_f or t < self.warmup else np.prod(self.x2s, axis=0) ** (1 / m_f)
        r = np.sqrt((s2 + self.eps) / (self.running + self.eps))
        r = np.ones_like(r) if skip or t <= max(1000, self.warmup) else np.clip(r, 0.2, 5.0)
        self.running = self.momentum * self.running + (1 - self.momentum) * s2
        z = x / np.sqrt(s2 + self.eps)
        y = weight * z + bias

        g = dy * weight * r
        gz = (g * z).sum(0) / n
        self.gzs[t % m_b] = self.ema if skip else gz
        m = gz if skip or t <= m_b or t < self.warmup else self.gzs.mean(0)
        self.ema = self.momentum * self.ema + (1 - self.momentum) * m
        used = m if skip else self.ema
        dx = (g - valid[:, None] * used * z) / np.sqrt(s2 + self.eps)
        return y, dx, (dy * r * z).sum(0), dy.sum(0)


@dataclass
class PowerReference:
    """Power normalization, arXiv 2003.07845, algorithms 1 (in warm-up) and 2."""

    channels: int
    warmup: int
    eps: float = 1e-5
    alpha: float = 0.9
    alpha_bkw: float = 0.8

    def __post_init__(self) -> None:
        self.t = 0
        self.phi = np.ones(self.channels)
        self.nu = np.zeros(self.channels)

    def step(self, u: Any, dy: Any, weight: Any, bias: Any, valid: Any) -> tuple[Any, Any, Any, Any]:
        self.t += 1
        n = valid.sum()
        batch = (u[valid] ** 2).sum(0) / n
        psi = np.sqrt((batch if self.t <= self.warmup else self.phi) + self.eps)
        if self.t < self.warmup:
            self.phi = ((self.t - 1) * self.phi + batch) / self.t
        self.phi = self.alpha * self.phi + (1 - self.alpha) * batch
        z = u / psi
        y = weight * z + bias

        g = dy * weight
        gz, zz = (g * z).sum(0) / n, (z[valid] ** 2).sum(0) / n
        used = gz if self.t <= self.warmup else self.nu
        du = (g - valid[:, None] * used * z) / psi
        self.nu = self.nu * (1 - (1 - self.alpha_bkw) * zz) + (1 - self.alpha_bkw) * gz
        return y, du, (dy * z).sum(0), dy.sum(0)


def batch_norm(x: Any, dy: Any, weight: Any, bias: Any, valid: Any, eps: float = 1e-5) -> Any:
    """Output, gradients, mean and unbiased variance of one batch, arXiv 1502.03167, over the valid tokens."""
    n = valid.sum()
    mean = x[valid].sum(0) / n
    var = ((x[valid] - mean) ** 2).sum(0) / n
    std = np.sqrt(var + eps)
    z = (x - mean) / std
    g = dy * weight
    through = g.sum(0) / n + z * ((g * z).sum(0) / n)
    dx = (g - valid[:, None] * through) / std
    return weight * z + bias, dx, (dy * z).sum(0), dy.sum(0), mean, var * n / (n - 1)


def group_scaling(x: Any, groups: int, eps: float = 1e-5) -> Any:
    """Each token divided by the quadratic mean of its group of channels."""
    parts = np.split(x, groups, axis=-1)
    return np.concatenate([p / np.sqrt((p**2).mean(-1, keepdims=True) + eps) for p in parts], axis=-1)
