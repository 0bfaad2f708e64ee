"""Train a small network whose layers all normalize, and rewrite it into one that does not.

    python examples/train_and_fold.py

A few seconds for scikit-learn's handwritten digits. Weight standardization becomes a constant, each batch
norm goes into a convolution, and what is left are convolutions, ReLUs and a linear layer.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import normfuse
from normfuse.nn import EstimatedBatchNorm, WeightStandardizedConv2d


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.as_tensor(labels)[order]


def network() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(1),
        WeightStandardizedConv2d(1, 16, 3, padding=0),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        WeightStandardizedConv2d(16, 32, 3, padding=1),
        EstimatedBatchNorm(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        order = torch.randperm(len(images))
        for batch in order.split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")


def main(epochs: int = 5) -> bool:
    torch.manual_seed(0)
    images, labels = digits()
    model = network()
    train(model, images[360:], labels[360:], epochs)

    model.eval()
    rewritten = normfuse.rewrite(
        model, (images[:360],), expect={"batch_norm": 0, "weight_standardization": 0}
    )
    print(rewritten.report)

    with torch.no_grad():
        before, after = model(images[:360]), rewritten.program.module()(images[:360])
    equal = normfuse.verify(model, rewritten.program, (images[:360],))
    for name, logits in (("trained", before), ("without norms", after)):
        print(f"{name}: {(logits.argmax(1) == labels[:360]).double().mean():.2%} of the test images right")
    print(f"largest difference {(before - after).abs().max():.1e}, error ratio {equal.error_ratio:.2f}")
    return equal.ok


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
