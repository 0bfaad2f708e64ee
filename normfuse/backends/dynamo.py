"""What Dynamo hands to a backend, as a program; and the marks it wants on what is handed on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import torch
from torch._dynamo.eval_frame import remove_from_cache
from torch._dynamo.exc import ShortenTraceback
from torch._dynamo.symbolic_convert import tls
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node

from normfuse.backends.names import name_modules
from normfuse.backends.owners import Owners
from normfuse.backends.threads import is_looked_up_elsewhere
from normfuse.capture.inner import inner_graphs
from normfuse.capture.translate import translate
from normfuse.errors import CaptureError, NormfuseError, UncapturableError
from normfuse.folding import is_refilled
from normfuse.ir.grad_mode import switches_gradients_on
from normfuse.ir.location import attribute_path
from normfuse.ir.program import Input, Program, Role
from normfuse.passes.collector import collector_at_rest
from normfuse.torch_compat import FakeTensorMode

__all__ = [
    "capture",
    "compiled_again",
    "compiling_code",
    "graph_break",
    "hand_on_marks",
    "input_name",
    "place_of",
    "visible",
]

_STATIC = "_dynamo_static_input_type"
#: Where Dynamo reads what FullyShardedDataParallel hands out: views of one flat parameter.
_FLAT = "FSDPNNModuleSource"
_SHARDED = (
    "weights of this model are sharded (FSDP): they are gathered anew for every call, by hooks that end the "
    "graph at every module that is sharded on its own"
)


@collector_at_rest()
def capture(gm: GraphModule, example_inputs: Sequence[Any]) -> tuple[Program, FakeTensorMode]:
    """The pre-dispatch program of a Dynamo graph, with the real tensors behind its weights."""
    fake_mode = detect_fake_mode(list(example_inputs))
    if fake_mode is None:
        raise CaptureError("the graph does not come from Dynamo: there is no fake tensor mode to trace with")
    placeholders = _inputs_of(gm)
    traced, notes = _translated(gm, example_inputs)
    owners = Owners()
    inputs = [
        _input(node, original, value, owners)
        for node, original, value in zip(_inputs_of(traced), placeholders, example_inputs, strict=True)
    ]
    if any(i.is_sharded for i in inputs):
        notes.append(_SHARDED)
    records = _records_gradients(traced, example_inputs)
    program = Program(traced, inputs, grad_enabled=records, notes=notes)
    program.inner = inner_graphs(program, lambda body: translate(body)[0])
    for one in (program, *(inner.program for inner in program.inner)):
        name_modules(one.gm.graph)
    return program, fake_mode


def _translated(gm: GraphModule, example_inputs: Sequence[Any]) -> tuple[GraphModule, list[str]]:
    try:
        return translate(gm)
    except (CaptureError, UncapturableError) as error:
        if not any(type(value).__name__ == "DTensor" for value in example_inputs):
            raise
        raise UncapturableError(
            "it computes with distributed tensors (DTensor), as under tensor parallelism; rewrite the model "
            "with normfuse.rewrite before it is distributed"
        ) from error


def _inputs_of(gm: GraphModule) -> list[Node]:
    return [n for n in gm.graph.nodes if n.op == "placeholder"]


def _records_gradients(gm: GraphModule, values: Sequence[Any]) -> bool:
    """Whether gradients flow into any input.

    Raises:
        UncapturableError: when the graph switches them on itself: what is made of weights ahead of that
            place would have none.
    """
    if not any(v.requires_grad for v in values if isinstance(v, torch.Tensor)):
        return False
    if not torch.is_grad_enabled() and switches_gradients_on(gm.graph):
        raise UncapturableError("it records gradients though it is called where none are recorded")
    return torch.is_grad_enabled()


def _input(node: Node, original: Node, value: Any, owners: Owners) -> Input:
    is_static = bool(original.meta.get("tensor_dict", {}).get(_STATIC))
    is_view = type(getattr(original, "_dynamo_source", None)).__name__ == _FLAT
    if isinstance(value, torch.nn.Parameter) or is_view:
        role = Role.PARAMETER
    else:
        role = Role.BUFFER if is_static and isinstance(value, torch.Tensor) else Role.USER
    owner = None if role is Role.USER else owners.of(original)
    is_sharded = is_view or (role is Role.PARAMETER and is_refilled(value))
    return Input(node, role, input_name(original), value, owner, is_sharded)


def input_name(node: Node) -> str:
    """``L['self']._modules['a']._parameters['weight']`` as ``a.weight``."""
    text = place_of(node)
    variable = re.fullmatch(r"[LG]\['(\w+)'\]", text)
    return (variable[1] if variable else attribute_path(text)) or node.name


def place_of(node: Node) -> str:
    """The expression by which Dynamo reads an input; empty where it does not say."""
    source = getattr(node, "_dynamo_source", None)
    if source is None:
        return ""
    return str(source.name() if callable(source.name) else source.name)


def hand_on_marks(original: GraphModule, rewritten: GraphModule, added: Sequence[Node]) -> None:
    """Give the rewritten graph what Inductor reads from a Dynamo graph.

    The inputs that were ``added``, folded weights and constants, are marked static: their addresses
    never change, so CUDA graphs need not copy them.
    """
    rewritten.meta.update(original.meta)
    for attribute in ("_param_name_to_source", "_source_to_user_stacks"):
        if hasattr(original, attribute):
            setattr(rewritten, attribute, getattr(original, attribute))
    new = set(added)
    kept = [n for n in _inputs_of(rewritten) if n not in new]
    for old, one in zip(_inputs_of(original), kept, strict=True):
        one._dynamo_source = getattr(old, "_dynamo_source", None)
        one.meta.update(
            {k: v for k, v in old.meta.items() if k in ("tensor_dict", "grapharg", "example_value")}
        )
    for node in added:
        node._dynamo_source = None
        node.meta["tensor_dict"] = {_STATIC: "unguarded"}


def compiling_code() -> CodeType | None:
    """The Python code that is being compiled now."""
    transaction = getattr(tls, "current_tx", None)
    return None if transaction is None else transaction.output.root_tx.f_code


def compiled_again() -> Callable[[], None]:
    """For the Python code that is being compiled now: what makes Dynamo compile it anew at its next run.

    To be called at every run until that happens, since other threads may forbid it at the moment.
    """
    code = compiling_code()

    def compile_again() -> None:
        if code is not None and not is_looked_up_elsewhere():
            remove_from_cache(code)

    return compile_again


def graph_break() -> list[str]:
    """Where and why Dynamo ends the graph that it compiles now, when it is not the end of the function."""
    transaction = getattr(tls, "current_tx", None)
    reason = None if transaction is None else getattr(transaction.output, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return []
    frame = reason.user_stack[-1] if reason.user_stack else None
    where = "" if frame is None else f" at {frame.filename}:{frame.lineno}"
    lines = str(reason.reason).strip().splitlines() or ["unknown reason"]
    detail = next((t.strip() for t in lines if t.strip().startswith("Explanation:")), "")
    what = detail.removeprefix("Explanation:").strip() or lines[0]
    if what.startswith("generic_jump"):
        what = "a branch depends on the values of a tensor"
    return [f"{where.strip()}: {what}" if where else what]


def visible(error: NormfuseError) -> NormfuseError:
    """The same error, in a form that Dynamo lets through to the user as it is."""
    kind = type(type(error).__name__, (ShortenTraceback, type(error)), {"__module__": type(error).__module__})
    made = kind(str(error), first_useful_frame=None)
    assert isinstance(made, NormfuseError)
    return made
