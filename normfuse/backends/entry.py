"""The ``torch.compile`` backend: ``torch.compile(model, backend="normfuse")``.

This module is what PyTorch's backend registry loads, so it imports nothing heavy. From then on known writers
are watched: what fully sharded models fill before their first graph is compiled has to be known by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from normfuse.folding.writers import watch_writers

__all__ = ["normfuse_backend"]

watch_writers()


def normfuse_backend(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a Dynamo graph with its norms in their cheapest exact form.

    Args:
        gm: the graph, as Dynamo hands it to a backend.
        example_inputs: its inputs; parameters are the real ones.
        mode: an Inductor mode, when ``torch.compile`` was given one.
        options: ``normfuse.*`` options are ours, all others Inductor's.

    Raises:
        OptionError: for an unknown option, value or rule.
        ExpectationError: when ``normfuse.expect`` is not met.
    """
    from normfuse.backends.compile import compile_graph

    return compile_graph(gm, example_inputs, mode, options)
