"""Which tensors of a model a rewrite changed and how, by their original names.

With it a new checkpoint of the same model is folded without the model: the result fits the
rewritten program.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from normfuse.errors import InputError
from normfuse.files import json_text, write_text
from normfuse.folding.conditions import Condition
from normfuse.folding.steps import decode_recipe, decode_tensor, dtype_name, dtype_named

__all__ = ["ChangedTensor", "TensorFacts", "WeightMap"]

_FORMAT = "normfuse weight map"
_VERSION = 2


@dataclass(frozen=True)
class TensorFacts:
    """What a tensor of a checkpoint has to look like."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: torch.Tensor) -> TensorFacts:
        return cls(dtype_name(value.dtype), tuple(value.shape))

    def __str__(self) -> str:
        return f"{self.dtype} {'x'.join(map(str, self.shape)) or 'scalar'}"


@dataclass(frozen=True)
class ChangedTensor:
    """One folded tensor.

    ``name`` is its name in the rewritten program: that of a tensor it takes the place of, or a new one
    (``is_new``). ``sources`` are names of the model; ``steps`` computes it from them, in order.
    """

    name: str
    is_new: bool
    dtype: str
    sources: tuple[str, ...]
    how: str
    steps: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class WeightMap:
    """Every change, and what a checkpoint must hold for it.

    ``needed`` are the sources by name; ``constants`` those among them that no checkpoint holds, with their
    values. ``same`` lists names that are one tensor in the model, of which a checkpoint may hold any.
    ``conditions`` are what the rewrite rests on: weights that do not meet them ask for another one.
    """

    changed: tuple[ChangedTensor, ...]
    needed: Mapping[str, TensorFacts]
    constants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    same: tuple[tuple[str, ...], ...] = ()
    conditions: tuple[Condition, ...] = ()

    def fold(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """A new state dict: the checkpoint with every changed tensor computed from its own tensors.

        Computed in float64 where a map is applied and cast once; entries that nothing changes are the
        checkpoint's own. The checkpoint stays as it is.

        Raises:
            InputError: as :meth:`check` does.
        """
        self.check(checkpoint)
        return {**checkpoint, **{one.name: self.fold_one(one, checkpoint) for one in self.changed}}

    def check(self, checkpoint: Mapping[str, Any]) -> None:
        """Make sure that the map fits.

        Raises:
            InputError: when a tensor is missing or has another shape or dtype than the model's, or the
                model would have been rewritten in another way with these weights.
        """
        for name in self.needed:
            self._find(name, checkpoint)
        for condition in self.conditions:
            condition.check(partial(self._find, checkpoint=checkpoint))

    def fold_one(self, one: ChangedTensor, checkpoint: Mapping[str, Any]) -> torch.Tensor:
        """One of the changed tensors; nothing but its sources is taken from ``checkpoint``.

        Raises:
            InputError: when one of them is missing or has another shape or dtype than the model's.
        """
        sources = [self._find(source, checkpoint) for source in one.sources]
        folded = _fold_one(one, sources)
        if all(bool(s.isfinite().all()) for s in sources) and not bool(folded.isfinite().all()):
            raise InputError(f"the map does not fit: {one.name} would not be finite in {one.dtype}")
        return folded

    def holder(self, name: str, checkpoint: Mapping[str, Any]) -> str | None:
        """The name under which ``checkpoint`` holds a tensor of the model; None when it does not."""
        names = next((group for group in self.same if name in group), ())
        return next((n for n in (name, *names) if n in checkpoint), None)

    def _find(self, name: str, checkpoint: Mapping[str, Any]) -> torch.Tensor:
        if name in self.constants:
            try:
                return decode_tensor(self.constants[name])
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise InputError(f"the map is damaged: {name}: {error}") from error
        holder = self.holder(name, checkpoint)
        held = None if holder is None else checkpoint[holder]
        if not isinstance(held, torch.Tensor):
            near = difflib.get_close_matches(name, checkpoint, n=1, cutoff=0.5)
            hint = f"; it has {near[0]}" if near else ""
            raise InputError(f"the map does not fit: the checkpoint holds no tensor {name}{hint}")
        facts = TensorFacts.of(held)
        if facts != self.needed[name]:
            expected = self.needed[name]
            raise InputError(
                f"the map does not fit: {name} is {facts} in the checkpoint and {expected} in the model"
            )
        return held

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what :meth:`save` writes."""
        from normfuse import __version__

        versions = {"normfuse": __version__, "torch": torch.__version__}
        return {"format": _FORMAT, "version": _VERSION, "written_by": versions, **asdict(self)}

    def save(self, path: str | Path) -> Path:
        """Write the map as JSON; an existing file is replaced as a whole."""
        return write_text(path, json_text(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> WeightMap:
        """The map that :meth:`save` wrote.

        Raises:
            InputError: when there is no such file, or it is no map of this version.
        """
        file = Path(path)
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not a weight map: it is not JSON") from error
        if not isinstance(held, dict) or held.get("format") != _FORMAT:
            raise InputError(f"{file} is not a weight map of normfuse")
        version = held.get("version")
        if version != _VERSION:
            raise InputError(
                f"{file} is a weight map of version {version!r}, and this normfuse reads {_VERSION}"
            )
        try:
            return cls._of(held)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{file} is damaged: {type(error).__name__}: {error}") from error

    @classmethod
    def _of(cls, held: Mapping[str, Any]) -> WeightMap:
        names = {f.name for f in fields(ChangedTensor)}
        changed = [ChangedTensor(**_only(names, one)) for one in held["changed"]]
        if not isinstance(held["conditions"], list):
            raise TypeError("the conditions are not a list")
        conditions = [Condition.decoded(one) for one in held["conditions"]]
        needed = {str(k): TensorFacts(v["dtype"], tuple(v["shape"])) for k, v in held["needed"].items()}
        constants = dict(held["constants"])
        read = [value.sources for condition in conditions for value in condition.values]
        for source in (
            source for sources in (*read, *(one.sources for one in changed)) for source in sources
        ):
            if source not in needed:
                raise KeyError(source)
        for one in changed:
            decode_recipe(one.steps, len(one.sources), dtype_named(one.dtype), one.name)
        same = tuple(tuple(group) for group in held["same"])
        return cls(tuple(changed), needed, constants, same, tuple(conditions))


def _only(names: set[str], one: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: one[name] for name in names}
    for name in ("name", "dtype", "how"):
        if not isinstance(values[name], str):
            raise TypeError(f"{name} is not text")
    return values | {"sources": tuple(one["sources"]), "steps": tuple(one["steps"])}


def _fold_one(one: ChangedTensor, sources: Sequence[torch.Tensor]) -> torch.Tensor:
    recipe = decode_recipe(one.steps, len(sources), dtype_named(one.dtype), one.name)
    try:
        return recipe.compute(sources)
    except Exception as error:
        cause = (str(error).strip().splitlines() or [""])[0]
        raise InputError(f"{one.name} cannot be folded: {type(error).__name__}: {cause}") from error
