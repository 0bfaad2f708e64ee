"""The map of a rewritten program's weights, from what was folded and under which names it was stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.node import Argument

from normfuse.errors import InputError
from normfuse.folding import Premise
from normfuse.folding.conditions import Condition
from normfuse.folding.recipe import FOLD, Folded
from normfuse.folding.steps import dtype_name, encode_recipe, encode_tensor
from normfuse.folding.weight_map import ChangedTensor, TensorFacts, WeightMap
from normfuse.ir.calls import CASTS, is_call
from normfuse.ir.program import Input, Program

__all__ = ["formula", "weight_map"]


def weight_map(
    exported: ExportedProgram, program: Program, folded: Sequence[Folded], names: Sequence[str]
) -> WeightMap:
    """How each folded weight, stored under the name beside it, is made of the tensors of ``exported``.

    Raises:
        InputError: when a weight is computed by an operator that is not PyTorch's own.
    """
    weights = program.weights
    asked = [sources for premise in program.premises for sources in premise.sources]
    sources = {s: weights[s] for read in (*(one.sources for one in folded), *asked) for s in read}
    changed = [
        _changed(one, name, [weights[s].name for s in one.sources], exported.state_dict)
        for one, name in zip(folded, names, strict=True)
    ]
    return WeightMap(
        tuple(changed),
        {i.name: TensorFacts.of(i.value) for i in sources.values()},
        {i.name: encode_tensor(i.value) for i in sources.values() if i.name not in exported.state_dict},
        _shared_names(exported.state_dict),
        tuple(_condition(p, weights) for p in program.premises),
    )


def _condition(premise: Premise, weights: Mapping[Node, Input]) -> Condition:
    try:
        return Condition.of(premise, lambda node: weights[node].name)
    except InputError as error:
        raise InputError(f"a condition on {premise.norm} cannot be written: {error}") from error


def _changed(one: Folded, name: str, sources: Sequence[str], state: Mapping[str, Any]) -> ChangedTensor:
    recipe = one.recipe
    try:
        steps = tuple(encode_recipe(recipe))
    except InputError as error:
        raise InputError(f"the weight {name} has no map that could be written: {error}") from error
    how = formula(recipe.body, dict(zip(_placeholders(recipe.body), sources, strict=True)))
    return ChangedTensor(name, name not in state, dtype_name(recipe.dtype), tuple(sources), how, steps)


def _placeholders(body: Graph) -> list[Node]:
    return [n for n in body.nodes if n.op == "placeholder"]


def formula(body: Graph, names: Mapping[Node, str]) -> str:
    """The computation for people: ``sub(w, mean(w, [0], True))``, casts of the maps left out."""

    def show(value: Argument) -> str:
        if isinstance(value, Node):
            return texts[value]
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(show, value))}]"
        return str(value)

    texts = dict(names)
    for node in body.nodes:
        if node.op == "call_function":
            arguments = [show(a) for a in node.args] + [f"{k}={show(v)}" for k, v in node.kwargs.items()]
            skipped = FOLD in node.meta and is_call(node, *CASTS)
            operator = str(node.target).removeprefix("aten.").split(".")[0]
            texts[node] = arguments[0] if skipped else f"{operator}({', '.join(arguments)})"
        elif node.op == "get_attr":
            texts[node] = str(node.target)
    result = body.output_node().args[0]
    return show(result)


def _shared_names(state: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Names that stand for one tensor: the same memory, seen in the same way."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.numel():
            seen = (value.data_ptr(), tuple(value.shape), tuple(value.stride()), value.dtype)
            groups.setdefault(seen, []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)
