"""What the tensors of a model might hold instead: folded weights, and norms that have nothing left to do.

Nothing here has to be right: :mod:`normfuse.in_place.broken` says what is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from normfuse.capture.weight_map import formula
from normfuse.in_place.held import Held, Place
from normfuse.in_place.shown import Made, Norm, Shown, placeholders
from normfuse.ir.rounding import equals_to_rounding
from normfuse.passes.fold_affine import FOLD_AFFINE
from normfuse.torch_compat import outside_tracing

__all__ = ["Change", "New", "host_of", "propose", "values_of"]


@dataclass(frozen=True)
class New:
    """What a tensor is to hold, on the host, and how it is computed.

    ``made`` is the folded weight that it is, if any; others do nothing then, or nothing more.
    """

    value: torch.Tensor
    how: str
    made: Made | None = None

    @property
    def is_idle(self) -> bool:
        return self.made is None


Change = dict[Place, New]


def values_of(change: Mapping[Place, New]) -> dict[Place, torch.Tensor]:
    """The entries alone."""
    return {place: new.value for place, new in change.items()}


def propose(one: Shown, held: Held, change: Change) -> None:
    """Add to ``change`` what the rules made of the weights of one call, where nothing else was proposed."""
    hosts, kept = set[Place](), _kept_shifts(one, held)
    for folded, made in one.folded:
        host = host_of(made, folded.node.meta["val"], one, held)
        if host is None or not kept.isdisjoint(made.places):
            continue
        hosts.add(host)
        names = dict(zip(placeholders(made.recipe.body), _names(made, held), strict=True))
        _add(change, host, made.compute({}), formula(made.recipe.body, names), made)
    for norm in one.norms:
        if norm.is_folded:
            for place, new in _idle(norm, one, held):
                _add(change, place, new.value, new.how)
    left = {place for _, made in one.folded for place in made.places} & one.factors
    for place in left - hosts - one.given_away - one.raw:
        if held.may_change(place):
            _add(change, place, torch.ones(place.shape, dtype=place.dtype), "1")


def _add(change: Change, place: Place, value: torch.Tensor, how: str, made: Made | None = None) -> None:
    if place not in change:
        change[place] = New(value.detach().to("cpu"), how, made)


def _names(made: Made, held: Held) -> list[str]:
    return [held.names.get(place, "a constant") for place in made.places]


def host_of(made: Made, like: torch.Tensor, one: Shown, held: Held) -> Place | None:
    """The tensor whose place a folded weight can take: it looks the same, and is no norm's and no factor."""
    others = one.given_away | one.factors | one.raw
    looks = (tuple(like.shape), like.stride(), made.recipe.dtype)
    free = (place for place in made.places if held.may_change(place) and place not in others)
    return next((place for place in free if (place.shape, place.stride, place.dtype) == looks), None)


def _idle(norm: Norm, one: Shown, held: Held) -> Iterator[tuple[Place, New]]:
    """Operands with which the norm does nothing after its core, or nothing at all where it has no core."""
    is_stored = norm.spec.statistics == "stored"
    wanted = _stored(norm, one, held) if is_stored else _plain(norm, one, held)
    for role, (value, how) in wanted.items():
        made = norm.operands.get(role)
        if made is not None and len(set(made.places)) == 1 and held.may_change(made.places[0]):
            entries = _entries(made, value)
            if entries is not None:
                yield made.places[0], New(entries, how)


def _plain(norm: Norm, one: Shown, held: Held) -> dict[str, tuple[torch.Tensor, str]]:
    """Where a reader has no bias, the shift stays in the norm, in units of its core.

    W (w N + b) = (W diag(w)) (N + b / w)
    """
    factor = norm.spec.post_factor
    idle = {"scale": (torch.tensor(1 / factor), f"{1 / factor:g}"), "shift": (torch.tensor(0.0), "0")}
    if not _keeps_shift(norm, one, held) or "shift" not in norm.operands:
        return idle
    with outside_tracing():
        shift = norm.operands["shift"].compute({}, torch.float64)
        if "scale" in norm.operands:
            shift = shift / norm.operands["scale"].compute({}, torch.float64)
    return idle | {"shift": (shift / factor, "bias / weight")}


def _stored(norm: Norm, one: Shown, held: Held) -> dict[str, tuple[torch.Tensor, str]]:
    """A norm that was folded into weights goes on with the statistics of what those write now.

        A(x) = D (x - mean) + shift = D x - mean',    mean' = D mean - shift

    ``D x`` has the mean ``D mean`` and the variance ``D**2 variance``, and the mean ``shift`` where a bias
    took ``-mean'``. In evaluation the norm is the identity then, or adds ``-mean'`` where there is no such
    bias; in training it is what it was, but for eps. One whose branch another weight took gives zeros.
    """
    with outside_tracing():
        values = {role: made.compute({}, torch.float64) for role, made in norm.operands.items()}
    if not {"mean", "variance"} <= set(values) or norm.spec.eps is None:
        return {}
    zero = torch.zeros_like(values["mean"])
    scale, shift = values.get("scale", zero + 1), values.get("shift", zero)
    if _is_beside(norm):
        return {"scale": (zero, "0"), "shift": (zero, "0")}
    factor = scale * (values["variance"] + norm.spec.eps).rsqrt()
    if _keeps_shift(norm, one, held):
        mean = (factor * values["mean"], "mean * weight / sqrt(var + eps)")
    else:
        mean = (shift, "bias")
    if "scale" not in values:
        return {"mean": mean, "variance": (zero + (1 - norm.spec.eps), "1 - eps")}
    variance = factor**2 * values["variance"]
    root = (variance + norm.spec.eps).sqrt()
    return {
        "mean": mean,
        "variance": (variance, "var * weight**2 / (var + eps)"),
        "scale": (root, "sqrt(var + eps) of the new var"),
    }


def _is_beside(norm: Norm) -> bool:
    return any(r.certificate["equation"] == FOLD_AFFINE.forms["beside"] for r in norm.site.rewrites)


def _keeps_shift(norm: Norm, one: Shown, held: Held) -> bool:
    """Whether some bias that was to take the shift does not exist."""
    shifts = _shifts(norm)
    return any(
        shifts & set(made.places) and host_of(made, folded.node.meta["val"], one, held) is None
        for folded, made in one.folded
    )


def _kept_shifts(one: Shown, held: Held) -> set[Place]:
    """The biases of norms that stay where they are."""
    plain = (norm for norm in one.norms if norm.is_folded and norm.spec.statistics != "stored")
    return {place for norm in plain if _keeps_shift(norm, one, held) for place in _shifts(norm)}


def _shifts(norm: Norm) -> set[Place]:
    """What none but the recipes of biases read."""
    made = norm.operands.get("mean" if norm.spec.statistics == "stored" else "shift")
    return set() if made is None else set(made.places)


def _entries(made: Made, wanted: torch.Tensor) -> torch.Tensor | None:
    """What a tensor has to hold for a value that is made of it to be this one; None if unknown."""
    (place,) = set(made.places)
    full = wanted.expand(place.shape) if not wanted.dim() else wanted
    tries = [full.reshape(place.shape)] if full.numel() == torch.Size(place.shape).numel() else []
    tries += [torch.full(place.shape, float(entry)) for entry in (0, 1)]
    for entries in (one.to(place.dtype).contiguous() for one in tries):
        with outside_tracing():
            value = made.compute({place: entries}, torch.float64).cpu()
        if equals_to_rounding(value, wanted.double().cpu().expand_as(value), 2):
            return entries
    return None
