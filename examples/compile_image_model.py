"""Compile a vision transformer, and see what became of its norms.

python examples/compile_image_model.py
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification

import normfuse


def main(**options: Any) -> bool:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=96, num_hidden_layers=4, num_attention_heads=3, intermediate_size=384, image_size=64
    )
    model = ViTForImageClassification(config).eval()
    images = torch.randn(8, 3, 64, 64)

    # "expect" turns a model update that silently stops matching into an error
    options = {"normfuse.expect": {"rms_norm": 9}, **options}
    fast = torch.compile(model, backend="normfuse", options=options)
    with torch.no_grad():
        logits = fast(images).logits
        print(normfuse.last_report())
        equal = normfuse.verify(model, fast, (images,))

    print(f"logits {tuple(logits.shape)}; error over the original's own: {equal.error_ratio:.2f}")
    return equal.ok


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
