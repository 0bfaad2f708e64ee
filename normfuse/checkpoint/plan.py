"""What to write: which tensors are computed and how, which modules change, and why the function is the same.

The rules run on the captured graph. The class with its modules replaced is captured as well, and the two
graphs have to agree step by step; which weight stands where then says what each parameter holds. Where they
do not agree, fewer rules are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from normfuse.checkpoint.case import Case, case_of
from normfuse.checkpoint.changes import Changes
from normfuse.checkpoint.embeds import centred_inputs
from normfuse.checkpoint.expressible import changes_of, norms_of_biases
from normfuse.checkpoint.modules import install
from normfuse.checkpoint.outline import paired
from normfuse.checkpoint.outlines import LeftOut, Outlined, outlined
from normfuse.checkpoint.placing import fill_dropped, place_weights
from normfuse.checkpoint.planned import MismatchError, Plan
from normfuse.checkpoint.source import Folder
from normfuse.checkpoint.stored import homes_of
from normfuse.checkpoint.unseen import unseen_by
from normfuse.errors import CaptureError, InputError
from normfuse.options import Options
from normfuse.report import Refusal, Report

__all__ = ["RULES", "allowed", "plan_of"]

#: The rules whose results modules of the same class can hold.
RULES = ("fold_affine", "recentre", "fold_scale")


def plan_of(
    folder: Folder,
    options: Options,
    new_biases: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Plan:
    """The plan for a folder; layers get no biases that the class does not have unless ``new_biases`` is True.

    Raises:
        InputError: for a folder that cannot be read or whose model is not known.
        CaptureError: for a model that cannot be captured.
    """
    case = case_of(folder)
    reasons: dict[str, None] = {}
    refused, failed = _Refused(), list[Changes]()
    for tried in _attempts(options):
        progress(f"capturing {type(case.model).__name__} and applying the rules")
        found, changes = _expressed(case, tried, refused, new_biases)
        if changes in failed:
            continue
        failed.append(changes)
        try:
            plan = _checked(case, found, changes)
        except MismatchError as error:
            reasons[f"{error}, so that was left out"] = None
            continue
        _explain(plan.report, refused, [*reasons])
        return plan
    raise InputError(f"{folder.path} cannot be rewritten as a folder: {'; '.join(reasons)}")


@dataclass
class _Refused:
    """Norms that no module can be, and norms whose bias has no place in the class, with the reasons.

    ``unseen`` are norms beside weights that other calls may use, each with one of them.
    """

    whole: dict[str, str] = field(default_factory=dict)
    biases: set[str] = field(default_factory=set)
    unseen: dict[str, str] = field(default_factory=dict)

    @property
    def left_out(self) -> LeftOut:
        whole = dict.fromkeys([*self.whole, *self.unseen], RULES)
        return dict.fromkeys(self.biases, ("fold_scale", "fold_affine")) | whole


def _expressed(case: Case, options: Options, refused: _Refused, new_biases: bool) -> tuple[Outlined, Changes]:
    """The rewritten graph and its modules; what has none is left out, and the rest tried again."""
    while True:
        found = outlined(case.model, case.inputs, options, case.small, refused.left_out)
        if unseen := unseen_by(case, found):
            refused.unseen |= unseen
            continue
        changes, whole = changes_of(found, case.model)
        homes = homes_of(found, changes.biased, changes.removed, case.small)
        homeless = [] if new_biases else [path for path in changes.biased if path not in homes]
        biases = norms_of_biases(found, homeless)
        if set(whole) <= set(refused.whole) and biases <= refused.biases:
            return found, changes
        refused.whole |= whole
        refused.biases |= biases


def _attempts(options: Options) -> Iterator[Options]:
    """What was asked for, then less and less of it."""
    first = allowed(options)
    rules = first.only or ()
    yield first
    if "recentre" in rules:
        yield replace(first, policy="pays")
    for rule in rules:
        yield replace(first, only=tuple(r for r in rules if r != rule))
    if len(rules) > 1:
        yield replace(first, only=())


def allowed(options: Options) -> Options:
    """The same for those rules alone that have a form in a folder."""
    return replace(options, only=tuple(rule for rule in RULES if options.runs(rule)), skip=())


def _checked(case: Case, found: Outlined, changes: Changes) -> Plan:
    """The plan of these changes, when the changed modules do what the rewritten graph does."""
    changed = case.make()
    install(changed, changes)
    nothing = Options.checked({"only": [], "verify": "off"}, prefix="")
    try:
        after = outlined(changed, case.inputs, nothing, lambda name: None)
    except CaptureError as error:  # the class may read a weight of a norm that has none any more
        raise MismatchError(f"the class does not run with its norms replaced ({error})") from error
    pairs = paired(found.outline, after.outline)
    if isinstance(pairs, str):
        raise MismatchError(pairs)
    plan = Plan(type(case.model).__name__, changes, found.report)
    place_weights(plan, case, found, after, pairs)
    fill_dropped(plan, case, found)
    plan.centred_inputs = centred_inputs(case.model, _centred_tables(plan, case.model))
    return plan


def _centred_tables(plan: Plan, model: Any) -> Iterator[str]:
    """The embeddings that lose their mean at each lookup, or lost that of their tables."""
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.nn.Embedding) and path:
            names = plan.made.values()
            if path in plan.changes.centred or any(one.name == f"{path}.weight" for one in names):
                yield path


def _explain(report: Report, refused: _Refused, reasons: list[str]) -> None:
    report.notes += reasons
    for site in report.sites:
        if site.module in refused.whole:
            message = f"{site.module} stays: {refused.whole[site.module]}"
            site.refusal = None  # the rules were kept from it, and have no reason of their own
            site.refuse(Refusal("no_module", message, remedy="rewrite the model as a program (.pt2)"))
        elif site.module in refused.unseen:
            site.refusal = None
            site.refuse(_unseen(site.module, refused.unseen[site.module]))
        elif site.module in refused.biases:
            message = f"the bias of {site.module} would need a bias in a layer that has none in its class"
            rule = "fold_affine" if site.spec["statistics"] == "stored" else "fold_scale"
            site.refuse(Refusal("new_bias", message, remedy="allow new biases (--new-biases)"), rule)


def _unseen(path: str, weight: str) -> Refusal:
    message = f"{path} stays: other calls may use {weight}, which the one that was captured does not"
    remedy = "rewrite the model as a program (.pt2), or save it without that weight"
    return Refusal("unseen_weight", message, remedy=remedy)
