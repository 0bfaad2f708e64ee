"""Where in the user's model a node comes from, in the words of the model and not of the graph."""

from __future__ import annotations

import operator
import re
from functools import lru_cache
from pathlib import Path

import torch
from torch._ops import OpOverload
from torch.fx import Node

from normfuse.ir.region import norm_of

__all__ = ["WRAPPERS", "attribute_path", "described", "module_path", "operator_name", "source_line"]

#: What Dynamo and wrappers put between a module and what it holds.
_MECHANISM = frozenset({
    "_modules", "_parameters", "_buffers", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
    "_old_forward", "cell_contents",
})  # fmt: skip
#: Classes that hold the user's model as ``module`` and pass every call on to it.
WRAPPERS = (
    "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "OptimizedModule",
    "CheckpointWrapper",
)  # fmt: skip
_STEP = re.compile(r"""\[(['"])(?P<key>.*?)\1\]|\[(?P<index>\d+)\]|(?P<name>\w+)""")
_ROOT = re.compile(r"""^[LG]\[(['"])(.*?)\1\]|^L__self___?""")

#: Folders whose code calls the user's modules, or is called by them, and is never what the user wrote.
_PASSES_ON = re.compile(
    r"[/\\](?:site|dist)-packages[/\\](?:torch|accelerate|peft)[/\\]"
    r"|[/\\]accelerate[/\\]hooks\.py$|[/\\]peft[/\\](?:peft_model\.py|tuners[/\\])"
    r"|[/\\]torch[/\\]nn[/\\](?:modules|parallel|functional\.py)|^<"
)
#: Files of PyTorch whose line is the same for every layer of a kind.
_SAYS_NOTHING = re.compile(
    r"[/\\]torch[/\\](?:nn[/\\]functional|nn[/\\]modules[/\\](?:module|container|normalization|batchnorm"
    r"|instancenorm|linear|conv|sparse|activation))\.py$|^<"
)
_TORCH = str(Path(torch.__file__).parent)

_NOUNS = {
    "add": "the sum", "sub": "the difference", "mul": "the product", "div": "the quotient",
    "linear": "the linear layer", "embedding": "the embedding", "cat": "the concatenation",
    "matmul": "the matrix product", "mm": "the matrix product", "bmm": "the matrix product",
    "conv1d": "the convolution", "conv2d": "the convolution", "conv3d": "the convolution",
    "conv_transpose1d": "the transposed convolution", "conv_transpose2d": "the transposed convolution",
    "conv_transpose3d": "the transposed convolution", "scaled_dot_product_attention": "the attention",
}  # fmt: skip


def module_path(node: Node) -> str:
    """Path of the innermost module as ``named_modules`` spells it, e.g. ``h.0.ln_1``; empty at the top."""
    if "module_path" in node.meta:
        return str(node.meta["module_path"])
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return ""
    path = str(stack[-1][0])
    for outer, kind in stack[:-1]:
        held = f"{outer}.module" if outer else "module"
        if str(getattr(kind, "__name__", kind)).split(".")[-1] in WRAPPERS and _is_at(path, held):
            path = f"{outer}{path[len(held) :]}".lstrip(".")
    return attribute_path(path)


def _is_at(path: str, held: str) -> bool:
    return path == held or path.startswith((f"{held}.", f"{held}["))


@lru_cache(maxsize=4096)
def attribute_path(text: str) -> str:
    """The attributes that an expression of Dynamo's goes through, without what only the mechanism needs.

    ``L['self'].__dict__['_modules']['model']._modules['0'].weight`` is ``model.0.weight``, and ``L['x']`` is
    empty.
    """
    steps: list[str] = []
    in_closure = False
    for found in _STEP.finditer(re.sub(r"@\d+", "", _ROOT.sub("", text))):
        step = found["key"] or found["index"] or found["name"] or ""
        is_mechanism = step in _MECHANISM or (step.startswith("__") and step.endswith("__"))
        if not is_mechanism and not (in_closure and found["index"]):
            steps.append(step)
        in_closure = step == "__closure__"
    return ".".join(steps)


def source_line(node: Node) -> str:
    """``file:line`` of the innermost frame that the user or a model's author wrote; empty when unknown."""
    return _written_at(node.meta.get("stack_trace") or "")


@lru_cache(maxsize=4096)
def _written_at(trace: str) -> str:
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace)
    written = [f for f in frames if not (f[0].startswith(_TORCH) or _PASSES_ON.search(f[0]))]
    telling = written or [f for f in frames if not _SAYS_NOTHING.search(f[0])]
    return ":".join(telling[-1]) if telling else ""


def operator_name(node: Node) -> str:
    """The operator as people know it, e.g. ``gelu``, or with its namespace where it is not PyTorch's."""
    if not isinstance(node.target, OpOverload):
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target._schema.name).removeprefix("aten::").replace("::", ".")


def described(node: Node) -> str:
    """A node for people, e.g. ``the sum in blocks.1 (add, model.py:42)``."""
    if node.op == "placeholder":
        return f"the {node.meta['label']}" if "label" in node.meta else node.name
    if node.op == "get_attr":
        return f"the constant {node.target}"
    if node.op == "output":
        return "the output"
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return f"a part of {described(node.args[0])}"
    return _placed(node, *_named(node))


def _named(node: Node) -> tuple[str, str]:
    """What to call an operation, and the operator where that does not say it."""
    region = norm_of(node)
    if region is not None:
        return f"the {region.spec.kind}", ""
    name = operator_name(node)
    noun = _NOUNS.get(name.rstrip("_"))
    if noun is None:
        return name, ""
    return noun, "" if name.rstrip("_") in noun else name


def _placed(node: Node, noun: str, name: str) -> str:
    module, line = module_path(node), source_line(node)
    path, _, number = line.rpartition(":")
    file = re.split(r"[/\\]", path)[-1]
    details = ", ".join(text for text in (name, f"{file}:{number}" if line else "") if text)
    return noun + (f" in {module}" if module else "") + (f" ({details})" if details else "")
