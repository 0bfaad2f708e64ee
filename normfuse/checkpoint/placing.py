"""Which tensor of the files holds what, once the changed modules are known to do what the graph does."""

from __future__ import annotations

from collections.abc import Mapping

from normfuse.checkpoint.case import Case
from normfuse.checkpoint.expressible import neutral_entries
from normfuse.checkpoint.names import Names
from normfuse.checkpoint.outlines import Outlined
from normfuse.checkpoint.planned import Made, MismatchError, Plan
from normfuse.checkpoint.stored import homes_of, neutral_statistics
from normfuse.folding import Folded

__all__ = ["fill_dropped", "place_weights"]


def place_weights(plan: Plan, case: Case, found: Outlined, after: Outlined, pairs: Mapping[str, str]) -> None:
    """What every parameter of the changed class holds: a folded weight, or what it held before."""
    folded = {one.node.name: one for one in found.folded}
    homes = homes_of(found, plan.changes.biased, plan.changes.removed, case.small)
    plan.homes = {f"{layer}.bias": f"{norm}.bias" for layer, norm in homes.items()}
    for theirs, ours in pairs.items():
        if ours in folded:
            _place(plan, case, found, folded[ours], after.names.get(theirs, ""))
    for theirs, ours in pairs.items():
        if ours not in folded:
            _keep(plan, case.names, after.names.get(theirs, theirs), found.names.get(ours, ours))


def _place(plan: Plan, case: Case, found: Outlined, one: Folded, target: str) -> None:
    sources = tuple(_stored(case.names, found.names[s.name]) for s in one.sources)
    shape = tuple(one.node.meta["val"].shape)
    for name in _targets(plan, case, target):
        made = plan.made.setdefault(name, Made(target, one.recipe, sources, shape))
        if (made.recipe, made.sources) != (one.recipe, sources):
            raise MismatchError(f"{target} would have to hold two different tensors")


def _keep(plan: Plan, names: Names, target: str, original: str) -> None:
    """``target`` reads what ``original`` was, which is the same tensor and does not change."""
    same = names.same.get(original, (original,))
    if target not in same:
        raise MismatchError(f"{target} would have to be {original}")
    if target in names.same and plan.made.keys() & set(names.of(target)):
        raise MismatchError(f"{target} would have to hold two different tensors")


def _stored(names: Names, name: str) -> str:
    found = names.of(name) if name in names.same else ()
    if not found:
        parts = names.merged.get(name)
        how = "is held by no file" if parts is None else f"is put together from parts such as {parts}"
        raise MismatchError(f"{name}, which a changed weight is made of, {how}")
    return found[0]


def _targets(plan: Plan, case: Case, target: str) -> tuple[str, ...]:
    """The tensors of the files that hold a parameter of the changed class."""
    if target in plan.homes:
        names = case.names.of(plan.homes[target])
        plan.biases[target.removesuffix(".bias")] = names[0]
        return names
    if target in plan.changes.added:
        path = target.removesuffix(".bias")
        layer = _stored(case.names, f"{path}.weight")
        name = f"{layer.removesuffix('.weight')}.bias"
        if name in case.folder or not layer.endswith(".weight"):
            raise MismatchError(f"there is no free name for the new {target}")
        plan.beside[name], plan.biases[path], plan.is_plain = layer, name, False
        return (name,)
    _stored(case.names, target)
    return case.names.of(target)


def fill_dropped(plan: Plan, case: Case, found: Outlined) -> None:
    """Parameters that the new norms do not have stay in the files and do nothing, for the class as it is."""
    for path, norm in plan.changes.norms.items():
        module = case.model.get_submodule(path)
        entries = {"weight": neutral_entries(module, norm), "bias": 0.0}
        for name, kept in (("weight", norm.has_weight), ("bias", norm.has_bias)):
            if kept or getattr(module, name, None) is None:
                continue
            full, entry = f"{path}.{name}", entries[name]
            if len(case.names.same[full]) > 1 or entry is None:
                raise MismatchError(f"{full} cannot be left out of the files")
            plan.filled |= dict.fromkeys(case.names.of(full), entry)
    for path in plan.changes.removed:
        _fill_removed(plan, case, found, path)


def _fill_removed(plan: Plan, case: Case, found: Outlined, path: str) -> None:
    eps = next(site.spec["eps"] for site in found.report.sites if site.module == path)
    entries = neutral_statistics(case.model.get_submodule(path), eps)
    if entries is None:
        raise MismatchError(f"{path} does something whatever it holds")
    for name, entry in entries.items():
        full = f"{path}.{name}"
        if len(case.names.same[full]) > 1:
            raise MismatchError(f"{full} cannot be left out of the files")
        plan.filled |= {one: entry for one in case.names.of(full) if one not in plan.made}
