"""``normfuse.json``: what was done to a folder, as plain values; nothing in it is run when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from normfuse.capture.weight_map import formula
from normfuse.checkpoint.changes import Changes, NormModule
from normfuse.checkpoint.planned import Made, Plan
from normfuse.checkpoint.source import RECORD, json_of
from normfuse.errors import InputError

__all__ = ["Record", "record_of_plan"]

_FORMAT, _VERSION = "normfuse checkpoint", 1


@dataclass(frozen=True)
class Record:
    """What a rewritten folder needs to be loaded.

    ``biases`` gives, by the path of a layer, the tensor of the files that is its new bias, and
    ``centred_inputs`` are the modules whose ``inputs_embeds`` lose their mean.
    """

    architecture: str
    changes: Changes
    biases: Mapping[str, str]
    centred_inputs: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> Record:
        """The record of a folder.

        Raises:
            InputError: when there is none, or it is damaged or of another version.
        """
        file = folder / RECORD
        if not file.is_file():
            raise InputError(
                f"{folder} has no {RECORD}: it was not rewritten by normfuse; load it with transformers"
            )
        held = json_of(file)
        if held.get("format") != _FORMAT or held.get("version") != _VERSION:
            raise InputError(f"{file} is no record of this version of normfuse; rewrite the original again")
        try:
            return cls._of(held)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{file} is damaged: {type(error).__name__}: {error}") from error

    @classmethod
    def _of(cls, held: Mapping[str, Any]) -> Record:
        norms = {str(path): NormModule.decoded(one) for path, one in held["norms"].items()}
        centred, biases, removed = (held[n] for n in ("centred_lookups", "new_biases", "removed_norms"))
        for name, paths in (("centred_lookups", centred), ("removed_norms", removed)):
            if not (isinstance(paths, list) and all(isinstance(path, str) for path in paths)):
                raise TypeError(f"{name} is not a list of paths")
        if not all(isinstance(text, str) for text in biases.values()):
            raise TypeError("new_biases does not give tensors by paths")
        if not all([*norms, *centred, *biases, *removed]):
            raise ValueError("it names a module by no path")
        changes = Changes(norms, tuple(centred), tuple(biases), tuple(removed))
        return cls(str(held["architecture"]), changes, dict(biases), _inputs(held))


def _inputs(held: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules whose embeddings are centred; an older record says only whether the model is one."""
    if "centred_inputs" not in held:
        return ("",) if held["centres_input"] is True else ()
    paths = held["centred_inputs"]
    if not (isinstance(paths, list) and all(isinstance(path, str) for path in paths)):
        raise TypeError("centred_inputs is not a list of paths")
    return tuple(paths)


def record_of_plan(plan: Plan) -> dict[str, Any]:
    """Plain values for the file."""
    from normfuse import __version__

    sites = ("module", "kind", "becomes", "action")
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "written_by": {"normfuse": __version__, "torch": torch.__version__},
        "architecture": plan.model_class,
        "loads_in_transformers": plan.is_plain,
        "norms": {path: asdict(norm) for path, norm in plan.changes.norms.items()},
        "centred_lookups": list(plan.changes.centred),
        "centred_inputs": list(plan.centred_inputs),
        "new_biases": dict(plan.biases),
        "removed_norms": list(plan.changes.removed),
        "without_effect": sorted(plan.filled),
        "taken_from": {name: old for name, old in (plan.taken or {}).items() if name != old},
        "changed": {name: _how(made) for name, made in sorted(plan.made.items())},
        "sites": [
            {name: getattr(site, name) for name in sites}
            | {"rules": site.rules, "reasons": {rule: why.code for rule, why in site.refusals.items()}}
            for site in plan.report.sites
        ],
        "notes": list(plan.report.notes),
    }


def _how(made: Made) -> str:
    placeholders = [n for n in made.recipe.body.nodes if n.op == "placeholder"]
    return formula(made.recipe.body, dict(zip(placeholders, made.sources, strict=True)))
