"""Norms that weights alone read, which may take their scale and shift."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.fuzz.network import STEPS, Net
from tests.fuzz.pieces_read import EPS
from tests.fuzz.recipe import Step

__all__ = ["SCALED"]

SCALED = STEPS.setdefault("scaled", {})


def scaled(function):
    """Register a function of network, stream and width that makes a value for others to compute with."""

    def run(net: Net, step: Step) -> None:
        net.values.append(function(net, net.stream(step), net.width))

    SCALED[function.__name__] = run
    return function


def _layer_norm(net, h, d):
    return F.layer_norm(h, (d,), net.weight(d), net.weight(d), EPS)


def _rms_norm(net, h, d):
    return F.rms_norm(h, (d,), net.weight(d), EPS)


@scaled
def read_by_two_layers(net, h, d):
    y = _layer_norm(net, h, d)
    return F.linear(y, net.weight(d, d), net.weight(d)) * F.linear(y, net.weight(d, d))


@scaled
def read_beside_another(net, h, d):
    first, second = _layer_norm(net, h, d), _layer_norm(net, h, d)
    return F.linear(first, net.weight(d, d)) + F.linear(second, net.weight(d, d), net.weight(d)).cos()


@scaled
def read_twice_by_hand(net, h, d):
    first, second = (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS) for _ in range(2))
    return first.sin() * second.cos()


@scaled
def of_a_norm(net, h, d):
    return F.rms_norm(F.rms_norm(h, (d,), None, 0.1) * -0.5, (d,), net.weight(d), 0.3)


@scaled
def of_what_is_centred(net, h, d):
    return F.rms_norm(F.layer_norm(h, (d,), None, None, 0.1), (d,), None, 0.3)


@scaled
def read_by_a_product(net, h, d):
    return _rms_norm(net, h, d).flip(1) @ net.weight(d, d)


@scaled
def read_by_a_convolution(net, h, d):
    y = _layer_norm(net, h, d).transpose(1, 2)
    return F.conv1d(y, net.weight(d, d, 1), net.weight(d)).transpose(1, 2)


@scaled
def read_by_a_padded_convolution(net, h, d):
    y = _rms_norm(net, h, d).transpose(1, 2)
    return F.conv1d(y, net.weight(d, 1, 3), padding=1, groups=d).transpose(1, 2)


@scaled
def joined_with_another(net, h, d):
    both = torch.cat([_layer_norm(net, h, d), _rms_norm(net, h.cos(), d)], -1)
    return F.linear(both, net.weight(d, 2 * d))


@scaled
def read_by_parts_of_a_weight(net, h, d):
    first, second = net.weight(2 * d, d).split([d, d])
    return F.linear(_rms_norm(net, h, d), first) + F.linear(_rms_norm(net, h.cos(), d), second)


@scaled
def read_as_a_mean(net, h, d):
    return F.linear((_layer_norm(net, h, d) / 3).mean(1, keepdim=True), net.weight(d, d)).expand(h.shape)


@scaled
def read_with_one_number(net, h, d):
    return F.linear(F.layer_norm(h, (d,), None, None, EPS) * net.weight(1), net.weight(d, d))
