"""Views, writes in place, and regions that hide them."""

from __future__ import annotations

import torch
from torch import nn

from tests.passes.building import Collection, D, normal, param

ATTACKS = attack = Collection()


@attack(2)
def added_in_place(s, x):
    h = s.lin(x)
    n = s.ln(h)
    h += s.lin2(x)
    return n, s.ln2(h)


@attack(0, "mutated")
def one_token_is_cleared(s, x):
    h = s.lin(x)
    h[:, 0] = 0
    return s.ln(h)


@attack(0, "mutated")
def one_channel_is_cleared_behind_scaled_copies(s, x):
    h = s.lin(x)
    h[..., 0] = 7
    return s.ln(h * 2), s.ln2(h * 3)


@attack(0, "nonlinear_writer")
def one_channel_is_cleared_behind_a_nonlinearity(s, x):
    h = torch.relu(s.lin(x))
    early = h * 2
    h[..., 0] = 7
    return s.ln(early), s.ln2(h * 3), s.ln2(h * 4)


@attack(0, "nonlinear_writer")
def copied_over(s, x):
    h = s.lin(x)
    h.copy_(s.lin2(x))
    return s.ln(h)


@attack(0, "mutated")
def written_through_a_view(s, x):
    h = s.lin(x)
    h.view(-1)[3:9].fill_(4.0)
    return s.ln(h)


@attack(0, "mutated")
def written_through_a_split(s, x):
    h = s.lin(x)
    a, _ = h.split(3, -1)
    a.mul_(5)
    return s.ln(h + 0 * h), s.ln2(h * 2)


@attack(2)
def filled_by_mask_in_place(s, x):
    h = s.lin(x)
    return s.ln(h.masked_fill_(x[..., :1] > 1, 3.0)), s.ln2(h)


@attack(1, extras=lambda: {"g": param(D)})
def input_of_the_writer_changes_behind_it(s, x):
    x = x.clone()
    h = s.lin(x)
    x.add_(1)
    return s.ln(h * s.g), x


@attack(1)
def argument_changes_behind_the_writer(s, x):
    h = s.lin(x)
    x.mul_(2)
    return s.ln(h)


@attack(1, args=lambda: (normal(D, D, 5),), extras=lambda: {"pos": torch.zeros(D, D)})
def another_buffer_changes(s, x):
    s.pos.add_(1)
    return s.ln(s.lin(x))


@attack(0, "weight_mutated", extras=lambda: {"pos": torch.zeros(D, D)})
def buffer_changes_through_a_view(s, x):
    s.pos.view(-1)[3:9].fill_(4.0)
    return s.ln(s.lin(x) + s.pos)


@attack(0, "weight_mutated", extras=lambda: {"pos": torch.zeros(D, D)})
def buffer_changes_behind_the_norm(s, x):
    n = s.ln(s.lin(x) + s.pos)
    s.pos[0].mul_(2)
    return n


@attack(0, "weight_mutated")
def weight_changes(s, x):
    s.lin.weight[0].mul_(2)
    return s.ln(s.lin(x))


@attack(0, "weight_mutated", extras=lambda: {"bn": nn.BatchNorm1d(D)}, prepare=lambda s: s.bn.train())
def running_mean_is_a_bias(s, x):
    y = s.bn(s.lin2(x)).relu()
    return s.ln(s.lin(x) + s.bn.running_mean) + y


@attack(0, "weight_mutated", extras=lambda: {"pos": torch.zeros(D, D)}, compiled=0)
def buffer_changes_under_autocast(s, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s.pos[0].mul_(2.0)
        s.pos[:, 1].mul_(2.0)
    return s.ln(s.lin(x) + s.pos)


@attack(0, "nonlinear_writer")
def values_change_under_autocast(s, x):
    h = torch.relu(s.lin(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h.view(-1)[0:5].add_(3.0)
    return s.ln(h * 2), s.ln2(h * 3)


@attack(0, "nonlinear_writer")
def values_change_under_enabled_gradients(s, x):
    h = torch.relu(s.lin(x))
    with torch.enable_grad():
        h[..., 1].add_(3.0)
    return s.ln(h * 2), s.ln2(h * 3)


@attack(1)
def values_are_a_view_of_a_buffer_of_zeros(s, x):
    h = torch.zeros(D, D, D, dtype=x.dtype)
    return s.ln(h + s.lin(x))


@attack(0, "mutated")
def values_are_written_into_zeros(s, x):
    h = torch.zeros(D, D, D, dtype=x.dtype)
    h[:, 0] = s.lin(x)[:, 1]
    return s.ln(h + s.lin2(x))


@attack(1, extras=lambda: {"p": param(D), "g": param(D)})
def zeros_change_below_a_gate(s, x):
    z = torch.zeros(D, D, D, dtype=x.dtype)
    z.add_(s.p)
    return s.ln((s.lin(x) + z) * s.g)


@attack(1)
def clone_is_changed_instead(s, x):
    h = s.lin(x)
    h.clone().add_(1)
    return s.ln(h)


@attack(0, "stream_is_output")
def clone_is_changed_and_read(s, x):
    h = s.lin(x)
    return s.ln(h), h.clone().mul_(2)


@attack(1)
def detached_values(s, x):
    return s.ln(s.lin(x).detach())


@attack(0, "mutated")
def detached_view_is_written(s, x):
    h = s.lin(x)
    h.detach()[..., 2] = 9
    return s.ln(h)


@attack(0, "raw_reader")
def values_are_written_into_a_cache(s, x):
    h = s.lin(x)
    cache = torch.ones(D, 2 * D, D, dtype=x.dtype)
    cache[:, D:] = h
    return s.ln(h), cache


@attack(2)
def index_put_on_the_values(s, x):
    h = torch.relu(s.lin(x))
    i = torch.arange(3, device=x.device)
    h.index_put_((i,), x[:3, :, :1] * 2)
    return s.ln(h * 2), s.ln2(h * 3)


@attack(0, "nonlinear_writer")
def out_of_an_operator(s, x):
    out = torch.empty(D, D, D, dtype=x.dtype)
    torch.mul(s.lin(x), 2, out=out)
    return s.ln(out * 2), s.ln2(out * 3)


@attack(2)
def random_noise_that_nobody_reads(s, x):
    torch.rand_like(x)
    return s.ln(s.lin(x)) + torch.rand(D, dtype=x.dtype), s.ln2(s.lin2(x))
