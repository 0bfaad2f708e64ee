"""A norm while it is being recognised: its description so far, and where it ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from normfuse.ir.changed import changed
from normfuse.ir.region import Operands
from normfuse.ir.sizes import tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.report import Refusal

__all__ = ["Candidate", "is_tensor"]


@dataclass(frozen=True)
class Candidate:
    """A recognised norm that ends at ``root``.

    ``closed`` says that its result was rounded after the affine part, so nothing more belongs to it.
    A ``refusal`` says why the norm is recorded but not lifted. ``stored`` is what the source was made of,
    where it is that and behind it minus its sum.
    """

    spec: NormSpec
    root: Node
    operands: Operands
    closed: bool = False
    refusal: Refusal | None = None
    stored: Node | None = None

    def grown(self, root: Node, operands: Operands | None = None, **changes: object) -> Candidate:
        """The same norm with one more operator absorbed."""
        value = tensor_of(root)
        assert value is not None
        out = changes.pop("out_dtype", value.dtype)
        assert isinstance(out, torch.dtype)
        spec = changed(self.spec, out_dtype=out, **changes)  # type: ignore[arg-type]
        return changed(self, spec=spec, root=root, operands=operands or self.operands)

    def interior(self) -> set[Node]:
        """The nodes between the operands and the root; a number is not looked into."""
        stop, seen, stack = set(self.operands.as_args()), {self.root}, [self.root]
        while stack:
            for node in stack.pop().all_input_nodes:
                if node not in stop and node not in seen:
                    seen.add(node)
                    if is_tensor(node):
                        stack.append(node)
        return seen


def is_tensor(node: Node) -> bool:
    """Whether a node stands for tensors, and not for a number."""
    return isinstance(node.meta.get("val"), (torch.Tensor, tuple, list))
