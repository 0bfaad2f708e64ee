"""Exported programs as programs, and back with folded weights in their state dict."""

from __future__ import annotations

import io
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map

from normfuse.arguments import bound_arguments
from normfuse.capture.ambient import refuse_ambient_autocast
from normfuse.capture.inner import inner_graphs
from normfuse.errors import CaptureError, InputError
from normfuse.folding import Folded
from normfuse.ir.effects import Effects
from normfuse.ir.program import Input, Program, Role
from normfuse.torch_compat import keep_guards

__all__ = [
    "export_model",
    "input_values",
    "open_sizes",
    "preserved_calls",
    "program_of",
    "with_folded_weights",
]

_ROLES = {
    InputKind.PARAMETER: Role.PARAMETER,
    InputKind.BUFFER: Role.BUFFER,
    InputKind.CONSTANT_TENSOR: Role.CONSTANT,
}

_UPDATES = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)


def export_model(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> ExportedProgram:
    """``torch.export`` without gradients.

    Raises:
        CaptureError: when the model cannot be exported, with the first line of the cause.
    """
    try:
        with torch.no_grad(), _printed_on_success():
            return torch.export.export(
                model, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = (
            "; make the model return tensors only, e.g. with use_cache=False"
            if "not a known" in cause
            else ""
        )
        raise CaptureError(
            f"{type(model).__name__} cannot be exported with these inputs: "
            f"{type(error).__name__}: {cause}{hint}"
        ) from error


@contextmanager
def _printed_on_success() -> Iterator[None]:
    """Hold back what is printed to standard error: PyTorch prints the whole graph before it fails."""
    with redirect_stderr(io.StringIO()) as held:
        yield
    sys.stderr.write(held.getvalue())


def open_sizes(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``dynamic_shapes`` that leave every size of every tensor open that the model does not fix itself.

    Raises:
        InputError: when the model does not take these inputs.
    """

    def leave_open(leaf: Any) -> Any:
        return (
            dict.fromkeys(range(leaf.dim()), torch.export.Dim.AUTO)
            if isinstance(leaf, torch.Tensor)
            else None
        )

    bound = bound_arguments(model, args, kwargs, type(model).__name__)
    return {name: tree_map(leave_open, value) for name, value in bound.items()}


def program_of(exported: ExportedProgram) -> Program:
    """A program over a copy of the exported graph; the original stays as it is.

    Raises:
        InputError: for one that was exported under ``torch.autocast``, whose dtypes it records and whose
            casts it does not hold.
    """
    refuse_ambient_autocast(exported.graph_module.graph)
    gm = _copied(exported.graph_module)
    nodes = {n.name: n for n in gm.graph.nodes if n.op == "placeholder"}
    inputs = [_input(spec, nodes, exported) for spec in exported.graph_signature.input_specs]
    updated = frozenset(
        s.target for s in exported.graph_signature.output_specs if s.kind in _UPDATES and s.target
    )
    program = Program(gm, inputs, copies_tables=True, updated=updated)
    program.inner = inner_graphs(program, _copied)
    return program


def input_values(exported: ExportedProgram, program: Program) -> list[Any] | None:
    """A value for each input: the weights, and the example inputs; None where some are not at hand."""
    plain = {*_ROLES, InputKind.USER_INPUT}
    if exported.example_inputs is None or any(
        s.kind not in plain for s in exported.graph_signature.input_specs
    ):
        return None
    passed = iter(tree_leaves(exported.example_inputs))
    return [i.value if i.is_weight else next(passed, None) for i in program.inputs]


def _copied(gm: GraphModule) -> GraphModule:
    """The same nodes in a new graph; fake values are shared, so what aliases what stays known.

    Names stay as well, which copying would change where they are Python's own, like ``input``: the
    signature refers to them.
    """
    graph = Graph()
    copies: dict[Node, Node] = {}
    result = graph.graph_copy(gm.graph, copies)
    graph.output(result)
    for original, copy in copies.items():
        copy.name = original.name
    old, new = gm.graph.output_node(), graph.output_node()
    new.meta = dict(old.meta)
    made = GraphModule(gm, graph)
    made.meta = dict(gm.meta)
    return made


def _input(spec: InputSpec, nodes: dict[str, Node], exported: ExportedProgram) -> Input:
    name = getattr(spec.arg, "name", "")
    if name not in nodes:
        raise InputError(f"the exported program declares an input {name!r} that its graph does not have")
    role = _ROLES.get(spec.kind, Role.USER)
    target = spec.target or name
    value = exported.state_dict.get(target, exported.constants.get(target)) if role is not Role.USER else None
    return Input(nodes[name], role, target, value)


def with_folded_weights(
    exported: ExportedProgram, program: Program, folded: Sequence[Folded]
) -> tuple[ExportedProgram, list[str]]:
    """A new exported program: the rewritten graph with the folded weights as parameters; and their names.

    A folded weight takes the place of its source where nothing else reads the source; otherwise it
    is added beside it, as ``<source>_folded``.
    """
    state, constants = dict(exported.state_dict), dict(exported.constants)
    _own_what_is_written(program, state, constants)
    specs = list(exported.graph_signature.input_specs)
    names = [_install(one, program, specs, state, constants) for one in folded]
    _settle_added(program, specs, state)
    kept = _weights_first(specs)
    _order_placeholders(program, kept)
    signature = ExportGraphSignature(kept, _renamed_outputs(exported, program))
    made = ExportedProgram(
        root=program.gm,
        graph=program.gm.graph,
        graph_signature=signature,
        state_dict=state,
        range_constraints=dict(exported.range_constraints),
        module_call_graph=[
            replace(entry, signature=None) if entry.fqn else entry for entry in exported.module_call_graph
        ],
        example_inputs=exported.example_inputs,
        constants=constants,
        verifiers=exported.verifiers,
    )
    keep_guards(exported, made)
    return made, names


def _settle_added(program: Program, specs: list[InputSpec], state: dict[str, Any]) -> None:
    """Inputs that the program was given before it was rewritten stay where something reads them."""
    known = {getattr(spec.arg, "name", "") for spec in specs}
    for one in [i for i in program.inputs if i.is_weight and i.node.name not in known]:
        if not one.node.users:
            program.gm.graph.erase_node(one.node)
            continue
        name = _free_name(one.name, {*state, *(spec.target for spec in specs if spec.target)})
        state[name] = torch.nn.Parameter(one.value, requires_grad=False)
        specs.append(InputSpec(InputKind.PARAMETER, TensorArgument(one.node.name), name))


def _own_what_is_written(program: Program, *held: dict[str, Any]) -> None:
    """Both programs run in one process, so what one of them writes to is not the other's.

    What lies in the same memory moves with it: views stay views of one another.
    """
    effects = Effects(program.gm.graph)
    written = {
        memory: i.value.untyped_storage().clone()
        for i in program.inputs
        if i.is_weight and (i.name in program.updated or effects.is_written(i.node))
        if (memory := _memory_of(i.value))
    }
    moved: dict[int, torch.Tensor] = {}
    for tensors in held:
        for name, tensor in tensors.items():
            storage = written.get(_memory_of(tensor))
            if storage is not None:
                tensors[name] = moved.setdefault(id(tensor), _over(storage, tensor))


def _memory_of(value: object) -> int:
    """The identity of a tensor's memory; 0 where it has none that could be shared."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return 0
    return int(value.untyped_storage()._cdata)


def _over(storage: torch.UntypedStorage, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor like the given one in other memory."""
    made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    made.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(made, tensor.requires_grad) if is_parameter else made


def _renamed_outputs(exported: ExportedProgram, program: Program) -> list[OutputSpec]:
    """What the program returns, under the names that the nodes have now."""
    results = program.gm.graph.output_node().args[0]
    specs = exported.graph_signature.output_specs
    assert isinstance(results, (list, tuple))
    taken = {node.name for node in program.gm.graph.nodes}
    for spec, node in zip(specs, results, strict=True):
        name = getattr(spec.arg, "name", None)
        if isinstance(node, Node) and node.op != "placeholder" and name and name not in taken:
            taken = (taken - {node.name}) | {name}
            node.name = name
    return [
        replace(spec, arg=replace(spec.arg, name=node.name)) if isinstance(node, Node) else spec
        for spec, node in zip(specs, results, strict=True)
    ]


def preserved_calls(exported: ExportedProgram) -> list[str]:
    """The modules whose calls were exported with signatures of their own.

    A rewritten program has them no longer: what such a module is given and returns may be other values.
    """
    return [entry.fqn for entry in exported.module_call_graph if entry.fqn and entry.signature is not None]


def _install(
    one: Folded,
    program: Program,
    specs: list[InputSpec],
    state: dict[str, Any],
    constants: Mapping[str, Any],
) -> str:
    weights = program.weights
    values = [weights[s].value for s in one.sources]
    tensor = torch.nn.Parameter(one.recipe.compute(values), requires_grad=False)
    host = _replaceable(one, program, state)
    if host is not None:
        host.node.meta["val"] = one.node.meta["val"]
        one.node.replace_all_uses_with(host.node)
        program.gm.graph.erase_node(one.node)
        state[host.name] = tensor if host.role is Role.PARAMETER else tensor.data
        return host.name
    modules = (name for name, _ in program.gm.named_modules())
    taken = {*state, *constants, *modules, *(spec.target for spec in specs if spec.target)}
    name = _free_name(f"{weights[one.sources[0]].name}_folded", taken)
    state[name] = tensor
    specs.append(InputSpec(InputKind.PARAMETER, TensorArgument(one.node.name), name))
    return name


def _replaceable(one: Folded, program: Program, state: Mapping[str, Any]) -> Input | None:
    """The stored source whose place the folded weight can take, which no one else reads.

    One of the same shape, or else one of which the folded weight has fewer rows or columns.
    """
    free = [s for s in one.sources if _is_free(program.weights[s], program, state, one.recipe.dtype)]
    wanted = one.node.meta["val"].shape
    same = (s for s in free if program.weights[s].value.shape == wanted)
    found = next(same, next((s for s in free if _is_part(wanted, program.weights[s].value.shape)), None))
    return None if found is None else program.weights[found]


def _is_free(found: Input, program: Program, state: Mapping[str, Any], dtype: torch.dtype) -> bool:
    shares = [i for i in program.inputs if i.is_weight and _shares_memory(i.value, found.value)]
    stored = found.role in (Role.PARAMETER, Role.BUFFER) and found.name in state
    return stored and found.value.dtype == dtype and len(shares) == 1 and not found.node.users


def _is_part(made: Sequence[int], whole: Sequence[int]) -> bool:
    return len(made) == len(whole) and all(a in (b, b - 1) for a, b in zip(made, whole, strict=True))


def _shares_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return _memory_of(a) == _memory_of(b) != 0


def _free_name(name: str, taken: Collection[str]) -> str:
    """A name that is no tensor's, and no module's that holds some."""
    candidate, number = name, 1
    while any(one == candidate or one.startswith(f"{candidate}.") for one in taken):
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _weights_first(specs: Sequence[InputSpec]) -> list[InputSpec]:
    """Weights, then what the caller passes, in the order in which the caller passes it."""
    return [s for s in specs if s.kind in _ROLES] + [s for s in specs if s.kind not in _ROLES]


def _order_placeholders(program: Program, specs: Sequence[InputSpec]) -> None:
    """Bring the placeholders into the order of the signature."""
    graph = program.gm.graph
    nodes = {n.name: n for n in graph.nodes if n.op == "placeholder"}
    anchor = graph._root
    for spec in specs:
        node = nodes[getattr(spec.arg, "name", "")]
        anchor.append(node)
        anchor = node
    graph.lint()
    program.gm.recompile()
