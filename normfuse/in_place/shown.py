"""One way in which a model is called, after the rules: what they folded, and what the norms read before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Graph, Node

from normfuse.folding import Folded, Recipe
from normfuse.in_place.held import Held, Place
from normfuse.ir.calls import aten, is_call
from normfuse.ir.program import Program
from normfuse.ir.region import Operands, norm_of
from normfuse.ir.sizes import tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.options import Options
from normfuse.passes.pipeline import run_pipeline
from normfuse.passes.recipes import recipe_of
from normfuse.passes.work import Work
from normfuse.report import Refusal, Report, Site

__all__ = ["Made", "Norm", "Shown", "placeholders", "shown"]

_ROLES = ("scale", "shift", "mean", "variance")
_REMEDY = "compile the model, or rewrite it, where this weight gets a copy"


@dataclass(frozen=True)
class Made:
    """A value of weights: how it is computed, and of which tensors."""

    recipe: Recipe
    places: tuple[Place, ...]
    tensors: tuple[torch.Tensor, ...]

    def compute(self, change: Mapping[Place, torch.Tensor], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The value when some tensors hold something else; in the recipe's dtype unless another is given."""
        recipe = self.recipe if dtype is None else self.recipe.in_dtype(dtype)
        held = zip(self.places, self.tensors, strict=True)
        return recipe.compute([change[p].to(t.device) if p in change else t for p, t in held])


@dataclass(frozen=True)
class Norm:
    """A norm as the model computes it, with the values of weights that it reads besides its input."""

    site: Site
    spec: NormSpec
    operands: Mapping[str, Made]

    @property
    def places(self) -> set[Place]:
        return {place for made in self.operands.values() for place in made.places}

    @property
    def rule(self) -> str:
        """The rule that would give what the norm reads to other weights."""
        return "fold_scale" if self.spec.statistics == "input" else "fold_affine"

    @property
    def is_folded(self) -> bool:
        """Whether that rule did."""
        return self.rule in self.site.rules


@dataclass
class Shown:
    """A program after the rules.

    ``folded`` are the weights that it reads in the place of others, and ``raw`` those that it reads as they
    are. ``factors`` are weights that multiply values, channel by channel.
    """

    program: Program
    report: Report
    folded: list[tuple[Folded, Made]] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    raw: set[Place] = field(default_factory=set)
    factors: set[Place] = field(default_factory=set)

    @property
    def given_away(self) -> set[Place]:
        """What norms read before, and other weights took."""
        return {place for norm in self.norms if norm.is_folded for place in norm.places}


def shown(program: Program, held: Held, options: Options) -> Shown:
    """Run the rules on ``program``; norms of which a weight must stay as it is keep what they read."""
    watch = _Watch(held)
    report, folded = run_pipeline(program, options, watch)
    found = Shown(program, report, norms=watch.norms, factors=watch.factors)
    found.folded = [(one, _made(program, one.recipe, one.sources)) for one in folded]
    found.raw = {Place.of(i.value) for node, i in program.weights.items() if node.users}
    return found


def _made(program: Program, recipe: Recipe, sources: Sequence[Node]) -> Made:
    tensors = tuple(program.weights[source].value for source in sources)
    return Made(recipe, tuple(map(Place.of, tensors)), tensors)


class _Watch:
    """Looks at the norms when all are known and none has changed."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self.norms: list[Norm] = []
        self.factors: set[Place] = set()

    def stage(self, name: str, work: Work) -> None:
        if name != "lift":
            return
        self.factors = _factors(work.program)
        for node, site in work.sites.items():
            region = norm_of(node)
            if region is not None:
                norm = Norm(site, region.spec, _operands(work.program, region.operands(node)))
                self.norms.append(norm)
                self._forbid(norm, work)

    def _forbid(self, norm: Norm, work: Work) -> None:
        fixed = [place for place in norm.places if not self._held.may_change(place)]
        if not fixed:
            return
        reason = self._held.fixed.get(fixed[0], "a weight of the norm is no parameter or buffer of the model")
        work.forbid(norm.site, norm.rule)
        norm.site.refusals[norm.rule] = Refusal("not_in_place", reason, remedy=_REMEDY)


def _operands(program: Program, operands: Operands) -> dict[str, Made]:
    """What is made of weights alone; the rules refuse the rest."""
    found: dict[str, Made] = {}
    for role in _ROLES:
        node = getattr(operands, role)
        if node is not None and tensor_of(node) is not None and _is_weight(program, node):
            found[role] = _made(program, *recipe_of(program, node))
    return found


def _is_weight(program: Program, node: Node) -> bool:
    if node.op == "placeholder":
        return node in program.weights
    return node.op == "call_function" and all(_is_weight(program, n) for n in node.all_input_nodes)


def _factors(program: Program) -> set[Place]:
    """Weights that multiply a value as they are stored, or in other sizes."""
    return {Place.of(i.value) for node, i in program.weights.items() if _multiplies(node)}


def _multiplies(node: Node) -> bool:
    return any(
        is_call(user, aten.mul.Tensor) or (len(user.all_input_nodes) == 1 and _multiplies(user))
        for user in node.users
        if user.op == "call_function"
    )


def placeholders(body: Graph) -> list[Node]:
    """The sources of a recipe, in order."""
    return [node for node in body.nodes if node.op == "placeholder"]
