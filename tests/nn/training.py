"""A layer beside the equations of its paper, step by step."""

from __future__ import annotations

import torch

#: Sums of at most 300 numbers lose 300 half units of float64, 3.3e-14; what 50 steps of 0.01 add to that
#: through the parameters is of the same size, since each starts from the same rounded values.
NEAR = 1e-12
STEPS = 50
RATE = 0.01


def distance(a, b):
    """|a - b| / |b|; |a| where b is zero."""
    a, b = a.detach().double(), b.detach().double()
    assert a.shape == b.shape
    length = b.norm()
    return float((a - b).norm() / length) if length > 0 else float(a.norm())


def scattered(layer, seed=0):
    """The layer in float64 with parameters that are neither zeros nor ones."""
    torch.manual_seed(seed)
    layer = layer.double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return layer


def agree(layer, reference, inputs, steps=STEPS, differentiable=(0,)):
    """Train both by gradient descent; the reference maps parameters, buffers, inputs to y and buffers."""
    own = {k: p.detach().clone().requires_grad_() for k, p in layer.named_parameters()}
    buffers = {k: b.clone() for k, b in layer.named_buffers()}
    for step in range(steps):
        torch.manual_seed(1000 + step)
        given = inputs(step)
        ours, theirs = ([x.clone() for x in given] for _ in range(2))
        for side in (ours, theirs):
            for index in differentiable:
                side[index].requires_grad_()
        y, (expected, buffers) = layer(*ours), reference(own, buffers, *theirs)
        assert distance(y, expected) <= NEAR, step
        outer = torch.randn_like(y)
        layer.zero_grad()
        (y * outer).sum().backward()
        gradients = torch.autograd.grad(
            (expected * outer).sum(), [*(theirs[k] for k in differentiable), *own.values()]
        )
        pairs = [(ours[k].grad, g) for k, g in zip(differentiable, gradients, strict=False)]
        rest = gradients[len(differentiable) :]
        pairs += [(layer.get_parameter(k).grad, g) for k, g in zip(own, rest, strict=True)]
        assert all(distance(a, b) <= NEAR for a, b in pairs), step
        with torch.no_grad():
            for (name, p), g in zip(own.items(), rest, strict=True):
                p.sub_(RATE * g)
                layer.get_parameter(name).sub_(RATE * layer.get_parameter(name).grad)
        for name, b in layer.named_buffers():
            assert distance(b, buffers[name]) <= NEAR, (step, name)
    return own, buffers
