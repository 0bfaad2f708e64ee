"""Where in the user's model a node comes from."""

from __future__ import annotations

import re

from torch.fx import Node

__all__ = ["module_path", "source_line"]


def module_path(node: Node) -> str:
    """Path of the innermost module, e.g. ``transformer.h.0.ln_1``; empty at the top."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    path = re.sub(r"^L\['\w+'\]\.?|^L__self___?", "", path)
    path = re.sub(r"\._modules\['([^']+)'\]|\['([^']+)'\]", lambda m: f".{m[1] or m[2]}", path)
    return re.sub(r"\[(\d+)\]", r".\1", path).lstrip(".")


def source_line(node: Node) -> str:
    """``file:line`` of the innermost user frame; empty when unknown."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""
