"""How large the entries of an integer input may be: smaller than the number of rows of what they index.

The input is followed through operators that hand its entries on unchanged.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from normfuse.ir.calls import CASTS, aten, bind, is_call

__all__ = ["index_bound"]

_UNCHANGED = (
    *CASTS, aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.default,
    aten.squeeze.dim, aten.expand.default, aten.slice.Tensor, aten.select.int, aten.clone.default,
    aten.contiguous.default, aten.alias.default, aten.detach.default, aten.transpose.int,
    aten.permute.default, aten.flatten.using_ints, aten.repeat.default, aten.detach_.default,
)  # fmt: skip


def index_bound(node: Node) -> int | None:
    """The smallest number of rows that the entries of ``node`` index; None when nothing is indexed."""
    bounds: list[int] = []
    seen, stack = {node}, [node]
    while stack:
        current = stack.pop()
        for user in current.users:
            bounds += _bound(user, current)
            if is_call(user, *_UNCHANGED) and user not in seen:
                seen.add(user)
                stack.append(user)
    return min(bounds, default=None)


def _bound(user: Node, index: Node) -> list[int]:
    """The rows that ``user`` looks up by ``index``, if it does."""
    if not is_call(user):
        return []
    if is_call(user, aten.embedding.default) and bind(user)["indices"] is index:
        return _rows(bind(user)["weight"], 0)
    if is_call(user, aten.index_select.default, aten.gather.default) and bind(user)["index"] is index:
        return _rows(bind(user)["self"], bind(user)["dim"])
    if is_call(user, aten.index.Tensor):
        return [n for d, i in enumerate(bind(user)["indices"]) if i is index for n in _rows(user.args[0], d)]
    return []


def _rows(table: object, dim: int) -> list[int]:
    value = table.meta.get("val") if isinstance(table, Node) else None
    rows = value.shape[dim] if isinstance(value, torch.Tensor) and value.dim() else None
    return [rows] if isinstance(rows, int) else []
