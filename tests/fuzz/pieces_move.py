"""What happens to a stream on its way: views, layouts, selections, casts, and edits in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.fuzz.network import STEPS, Net
from tests.fuzz.recipe import Step

__all__ = ["BLOCKED"]

BLOCKED = {
    "relu_", "roll_channels", "join_channels", "flip_channels", "add_number", "gate", "drop", "zero_channel",
    "zero_first_token", "view_and_write", "add_the_input", "to_half", "pad_with_ones", "cumsum", "abs_",
    "softcap", "as_strided", "write_to_the_input", "write_and_read_the_old",
}  # fmt: skip


def move(function):
    """Register a function of network and stream that makes the next value of the stream."""

    def run(net: Net, step: Step) -> None:
        made = function(net, net.stream(step))
        net.replace(step, made)

    STEPS.setdefault("move", {})[function.__name__] = run
    return function


def _other(net, h):
    """Another stream of the same shape, or this one."""
    return net.streams[0] if net.streams else h


@move
def transposed(net, h):
    return h.transpose(1, 2).contiguous().mT


@move
def token_major(net, h):
    return h.transpose(0, 1).contiguous().transpose(0, 1)


@move
def flattened(net, h):
    return h.reshape(-1, h.shape[-1]).view(h.shape)


@move
def unflattened(net, h):
    return h.unsqueeze(1).flatten(0, 1).unflatten(0, (h.shape[0], 1)).squeeze(1)


@move
def rolled(net, h):
    return h.roll(1, 1)


@move
def flipped(net, h):
    return h.flip(1)


@move
def selected(net, h):
    return h.index_select(1, torch.arange(h.shape[1], device=h.device).flip(0))


@move
def concatenated(net, h):
    return torch.cat([h, _other(net, h)], 1)[:, : h.shape[1]]


@move
def stacked(net, h):
    return torch.stack([h, _other(net, h)], 1).mean(1)


@move
def met(net, h):
    return h + _other(net, h)


@move
def padded(net, h):
    return F.pad(h, (0, 0, 1, 1))[:, 1:-1]


@move
def masked(net, h):
    return h.masked_fill((net.ids > 4).unsqueeze(-1), 0.0)


@move
def chosen(net, h):
    return torch.where((net.ids > 3).unsqueeze(-1), h, _other(net, h))


@move
def halved(net, h):
    return h * 0.5


@move
def divided(net, h):
    return h / 3.0


@move
def negated(net, h):
    return -h


@move
def weighted(net, h):
    return h * torch.sigmoid(net.x.sum(-1, keepdim=True))


@move
def scaled(net, h):
    return h * net.weight(net.width)


@move
def dropped_in_evaluation(net, h):
    """Of an expanded value this is the value itself, and for PyTorch's fake tensors a dense one."""
    return h if 0 in h.stride() else F.dropout(h, 0.5, False)


@move
def cloned(net, h):
    return h.clone()


@move
def detached(net, h):
    return h.detach()


@move
def parts(net, h):
    return torch.cat([p * 1.0 for p in h.chunk(2, 1)], 1)


@move
def unbound(net, h):
    return torch.stack(h.unbind(0), 0)


@move
def repeated(net, h):
    return h.repeat(1, 2, 1)[:, ::2]


@move
def broadcast(net, h):
    return h[:, :1].expand(h.shape) + h


@move
def pooled(net, h):
    return h.mean(1, keepdim=True).expand(h.shape) * 0.5 + h


@move
def widened_and_back(net, h):
    return h.double().to(h.dtype)


@move
def add_zero(net, h):
    return h + torch.zeros_like(h)


@move
def last_first(net, h):
    return h.permute(2, 0, 1).permute(1, 2, 0)


@move
def edited_in_place(net, h):
    return (h * 1.0).mul_(0.5)


@move
def averaged_over_tokens(net, h):
    return F.avg_pool1d(h.mT, 3, 1, 1).mT


@move
def relu_(net, h):
    return F.relu(h)


@move
def abs_(net, h):
    return h.abs()


@move
def cumsum(net, h):
    return h.cumsum(-1) * 0.25


@move
def softcap(net, h):
    return torch.tanh(h / 5.0) * 5.0


@move
def roll_channels(net, h):
    return h.roll(1, -1)


@move
def flip_channels(net, h):
    return h.flip(-1)


@move
def join_channels(net, h):
    return torch.cat([h[..., :1], h[..., 1:] * 2], -1)


@move
def add_number(net, h):
    return h + 1.5


@move
def gate(net, h):
    return h * torch.sigmoid(net.x)


@move
def drop(net, h):
    return F.dropout(h, 0.5, True)


@move
def zero_channel(net, h):
    made = h.contiguous().clone()
    made[..., 0] = 0.0
    return made


@move
def zero_first_token(net, h):
    made = h.contiguous().clone()
    made[:, 0] = 0.0
    return made


@move
def view_and_write(net, h):
    made = h.clone(memory_format=torch.contiguous_format)
    made.view(-1)[1:3].add_(2.0)
    return made


@move
def write_and_read_the_old(net, h):
    old = h * 1.0
    view = old[:, :1]
    made = old.mul_(2.0)
    return made + view


@move
def add_the_input(net, h):
    return h + net.x


@move
def write_to_the_input(net, h):
    net.x.add_(1.0)
    return h + 0.0


@move
def to_half(net, h):
    return h.to(torch.bfloat16).to(h.dtype)


@move
def pad_with_ones(net, h):
    return F.pad(h, (0, 0, 1, 0), value=1.0)[:, :-1]


@move
def as_strided(net, h):
    made = h.contiguous()
    return made.as_strided(made.shape, made.stride(), 0) * 1.0
