"""Any FX graph to pre-dispatch ATen: still differentiable, composite operators whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule, Interpreter

from normfuse.torch_compat import FakeTensorMode, make_fx, preserve_node_meta

__all__ = ["retrace"]


def retrace(gm: GraphModule, fake_inputs: Sequence[Any], fake_mode: FakeTensorMode) -> GraphModule:
    """Trace ``gm`` on fake inputs; module paths and source lines of its nodes are kept.

    The result has one placeholder for each input, in order.
    """

    def run(*inputs: Any) -> Any:
        return Interpreter(gm).run(*inputs)

    with fake_mode, preserve_node_meta():
        traced: GraphModule = make_fx(run, pre_dispatch=True, _allow_non_fake_inputs=True)(*fake_inputs)
    return traced
