"""A rewritten model as one of another class of ``transformers``: an OLMo whose norms are RMSNorms is a Llama.

Nothing is known here of any two classes. The configuration is carried over by the names of its entries, the
other class is built from it on the meta device and captured as the original was, and the two graphs have to
be the same. Which weight stands where the graphs say, so tensors may have other names. Weights that the
rewritten model does not have do nothing: ones in a norm, zeros in a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch

from normfuse.checkpoint.architecture import class_named, empty_model
from normfuse.checkpoint.case import Case, case_of, untied
from normfuse.checkpoint.changes import Changes
from normfuse.checkpoint.configuration import config_like, tables_of
from normfuse.checkpoint.matching import Match, matched
from normfuse.checkpoint.outlines import BIASED, Outlined, outlined
from normfuse.checkpoint.plan import allowed
from normfuse.checkpoint.planned import Made, MismatchError, Plan
from normfuse.checkpoint.source import Folder
from normfuse.checkpoint.unseen import unseen_of
from normfuse.errors import CaptureError, InputError
from normfuse.ir.calls import bind, is_call
from normfuse.options import Options

__all__ = ["plan_as"]

_NOTHING = Options.checked({"only": [], "verify": "off"}, prefix="")


def plan_as(
    folder: Folder, options: Options, name: str, progress: Callable[[str], None] = lambda text: None
) -> Plan:
    """The plan for a folder whose model becomes one of the class ``name``.

    Raises:
        InputError: when there is no such class, or the rewritten model is none of it, with the reason.
        CaptureError: when the model of the folder cannot be captured.
    """
    model_class = class_named(name)
    options = allowed(options)
    case, reason = case_of(folder), ""
    for one in filter(None, (case, untied(case))):
        progress(f"capturing {type(case.model).__name__} and applying the rules")
        found = outlined(one.model, one.inputs, options, one.small)
        for config in _configurations(model_class, one, found):
            progress(f"comparing with {name}")
            try:
                return _plan(one, found, model_class, config, options)
            except (MismatchError, CaptureError) as error:
                reason = str(error)
        kept = next((s.refusal for s in found.report.sites if s.refusal and not s.rewrites), None)
        reason = f"{reason}; {kept.message}" if kept is not None else reason
    raise InputError(f"{folder.path} is no {name} when it is rewritten: {reason}")


def _configurations(model_class: Any, case: Case, found: Outlined) -> Iterator[Any]:
    """That of the folder with the eps of the rewritten norms; then with biases where the class has some."""
    sizes = {spec.eps for _, spec, _ in found.norms}
    eps = sizes.pop() if len(sizes) == 1 else None
    plain = config_like(model_class, case.model.config, eps)
    yield plain
    layers = (node for node in found.program.gm.graph.nodes if is_call(node, *BIASED))
    if all(bind(layer)["bias"] is None for layer in layers):
        return
    flags = [name for name, value in plain.to_dict().items() if "bias" in name and value is False]
    for count in range(1, len(flags) + 1):
        for some in combinations(flags[:3], count):
            yield config_like(model_class, case.model.config, eps, dict.fromkeys(some, True))


def _plan(case: Case, found: Outlined, model_class: Any, config: Any, options: Options) -> Plan:
    folder = case.folder
    model = empty_model(model_class, config, folder.dtype, folder.path)
    plan = _placed(case, found, model, case.inputs)
    if "input_ids" in case.inputs:  # a mask takes other ways through a class
        masked = {**case.inputs, "attention_mask": torch.ones_like(case.inputs["input_ids"])}
        with_mask = outlined(case.model, masked, options, case.small)
        other = _placed(case, with_mask, model, masked)
        if _contents(other) != _contents(plan):
            raise MismatchError("with a mask its weights stand in other places")
    plan.config = config
    return plan


def _placed(case: Case, found: Outlined, model: Any, inputs: Mapping[str, Any]) -> Plan:
    """Every tensor of the other class: computed, taken over, or one that does nothing."""
    after = outlined(model, inputs, _NOTHING, lambda name: None)
    match = matched(found.outline, after.outline)
    if isinstance(match, str):
        raise MismatchError(match)
    if unseen := [*unseen_of(case, found)]:
        raise MismatchError(f"other calls may use {unseen[0]}, which the one that was compared does not")
    plan = Plan(type(model).__name__, Changes(), found.report, taken={})
    filled = {after.names.get(node, node): entry for node, entry in match.neutral.items()}
    given = _given(case, found, after, model, match)
    if not filled.keys() <= model.state_dict().keys() - given.keys():
        raise MismatchError("it reads what is no weight of its own")
    for name, value in model.state_dict().items():
        if name in filled:
            plan.filled[name] = filled[name]
        elif name in given:
            _take(plan, case, name, value, given[name])
        elif name not in _second_names(model):
            raise MismatchError(f"its {name} has no counterpart")
        else:
            continue
        plan.shapes[name] = (value.dtype, tuple(value.shape))
    return plan


def _take(plan: Plan, case: Case, name: str, value: torch.Tensor, given: str | Made) -> None:
    assert plan.taken is not None
    if isinstance(given, Made):
        plan.made[name] = replace(given, name=name)
        dtype, shape = given.recipe.dtype, given.shape
    else:
        plan.taken[name] = given
        dtype, shape = case.folder.stored[given].dtype, case.folder.stored[given].shape
    if (dtype, shape) != (value.dtype, tuple(value.shape)):
        raise MismatchError(f"its {name} has another shape or dtype")


def _second_names(model: Any) -> Mapping[str, str]:
    """The names of tied tensors under which files do not hold them, with those under which they do."""
    return getattr(model, "all_tied_weights_keys", None) or {}


def _given(case: Case, found: Outlined, after: Outlined, model: Any, match: Match) -> dict[str, str | Made]:
    """By the names of the other class's tensors: how each is computed, or which of the files' it is."""
    given: dict[str, str | Made] = {}
    held, second = model.state_dict(), _second_names(model)
    tables: dict[str, torch.Tensor] = {}
    for theirs, ours in match.pairs.items():
        name = after.names.get(theirs)
        if name is None:
            if theirs != ours:
                raise MismatchError(f"it reads {theirs} where the rewritten model reads {ours}")
        elif name not in held:
            tables = tables or {**tables_of(model)}
            if not _equal(tables_of(case.model).get(found.names.get(ours, "")), tables.get(name)):
                raise MismatchError(f"its {name} may hold other numbers")
        else:
            one = _source(case, found, ours)
            first = second.get(name, name)
            if not _same(given.setdefault(first, one), one):
                raise MismatchError(f"its {name} would have to hold two different tensors")
    return given


def _source(case: Case, found: Outlined, ours: str) -> str | Made:
    one = next((folded for folded in found.folded if folded.node.name == ours), None)
    if one is None:
        return _stored(case, found.names.get(ours, ours))
    sources = tuple(_stored(case, found.names[s.name]) for s in one.sources)
    return Made(ours, one.recipe, sources, tuple(one.node.meta["val"].shape))


def _same(one: str | Made, other: str | Made) -> bool:
    if isinstance(one, Made) and isinstance(other, Made):
        return (one.recipe.key, one.sources) == (other.recipe.key, other.sources)
    return one == other


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)


def _stored(case: Case, name: str) -> str:
    found = case.names.of(name) if name in case.names.same else ()
    if not found:
        raise MismatchError(f"{name} is held by no file as it is")
    return found[0]


def _contents(plan: Plan) -> Any:
    made = {name: (one.recipe.key, one.sources) for name, one in plan.made.items()}
    return made, plan.taken, plan.filled
