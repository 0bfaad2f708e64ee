"""Moves of axes around norms with stored statistics, which vanish with them, and moves that only look so."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.fuzz.pieces_stored import batch_norm
from tests.fuzz.pieces_write import writer

__all__ = ["BLOCKED"]

BLOCKED = {"norm_whose_order_is_read", "norm_behind_a_sum_with_raw_values"}


def _linear(net, v, d):
    return F.linear(v, net.weight(d, d), net.weight(d))


@writer(kind="stored")
def norm_between_copies(net, v, d):
    """The evaluation form of published unified norms."""
    made = _linear(net, v, d).clone().permute(0, 2, 1).contiguous()
    made = made.reshape(made.shape).unsqueeze(-1)
    made = made / torch.sqrt(net.variance(d).view(1, d, 1, 1) + 1e-5)
    made = net.weight(d).view(1, d, 1, 1) * made + net.weight(d).view(1, d, 1, 1)
    return made.squeeze(-1).permute(0, 2, 1).contiguous()


@writer(kind="stored")
def rep_norm_with_its_skip_outside(net, v, d):
    made = _linear(net, v, d)
    normed = batch_norm(net, made.transpose(1, 2).contiguous()).transpose(1, 2)
    return normed + net.weight(1) * made


@writer(kind="stored")
def rep_norm_outside_before_linear(net, v, d):
    x = F.relu(v)
    normed = batch_norm(net, x.mT.contiguous()).mT + x * net.weight(d)
    return F.linear(normed, net.weight(d, d))


@writer(kind="stored")
def norm_of_rows_and_back(net, v, d):
    b, n, _ = v.shape
    normed = batch_norm(net, _linear(net, v, d).view(b * n, d)).unsqueeze(0)
    return normed.view(b, n, d)


@writer(kind="stored")
def norm_turned_back_otherwise(net, v, d):
    """Channels and positions end up mixed: the moves do not undo each other."""
    b, n, _ = v.shape
    made = batch_norm(net, _linear(net, v, d).transpose(1, 2).contiguous()).reshape(b, n, d)
    return F.linear(made, net.weight(d, d))


@writer(kind="stored")
def norm_whose_order_is_read(net, v, d):
    """A view that only the order of the moved result allows."""
    b, n, _ = v.shape
    made = batch_norm(net, F.relu(v).transpose(1, 2).contiguous()).transpose(1, 2)
    return F.linear(made.transpose(1, 2).view(b * d, n).view(b, d, n).mT, net.weight(d, d))


@writer(kind="stored")
def two_norms_between_moves(net, v, d):
    x = batch_norm(net, _linear(net, v, d).transpose(1, 2).contiguous()).transpose(1, 2).contiguous()
    return batch_norm(net, x.clone().transpose(1, 2).contiguous(), 1e-3).transpose(1, 2)


@writer(kind="stored")
def skip_of_another_value(net, v, d):
    made = _linear(net, v, d)
    normed = batch_norm(net, made.transpose(1, 2).contiguous()).transpose(1, 2)
    return normed + net.weight(1) * v


@writer(kind="stored")
def norm_over_repeated_groups(net, v, d):
    """Published power norms: the statistic of a group is repeated for its channels."""
    groups = next(g for g in (2, 3, 1) if d % g == 0)
    made = _linear(net, v, d)
    parts = made.contiguous().reshape(*made.shape[:-1], groups, d // groups)
    mean = (parts * parts).mean(-1, keepdim=True).repeat(1, 1, 1, d // groups).view(made.shape)
    made = made / torch.sqrt(mean + 1e-5)
    return made * (net.weight(d) / torch.sqrt(net.variance(d) + 1e-5)) + net.weight(d)


@writer(kind="stored")
def norms_behind_sums(net, v, d):
    """A block whose norms stand behind its residual sums, as in the first transformers."""
    x = batch_norm(net, F.relu(v).reshape(-1, d))
    x = batch_norm(net, x + _linear(net, F.gelu(_linear(net, x, d)), d))
    x = x - _linear(net, F.relu(_linear(net, x, d)), d)
    return F.linear(batch_norm(net, x, 1e-3), net.weight(d, d)).view(v.shape)


@writer(kind="stored")
def norm_behind_a_sum_with_raw_values(net, v, d):
    """Nothing can be divided by the scale."""
    x = batch_norm(net, F.relu(v).reshape(-1, d)) + v.reshape(-1, d)
    return F.linear(x, net.weight(d, d)).view(v.shape)
