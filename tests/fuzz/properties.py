"""What must hold for every network, whatever it looks like.

* The rewritten program is equal to the original: in float64 up to the order of sums, in float32 and bfloat16
  within the error budget against a float64 oracle. What it does to the caller's tensors is the same, and so
  is the memory that its outputs lie in: what the caller writes to one changes no weight that was folded.
* Lifting changes no bit. Gradients are equal while the algebra on weights is still in the graph.
* When weights change, by whatever writes to them, the folded ones are those of a new fold.
* The pipeline has nothing left to do on what it made, and its rules may run in any order, or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.utils._pytree import tree_leaves

from normfuse.errors import OptionError, VerificationError
from normfuse.ir import Input, Program, Role
from normfuse.options import Options
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.functionalize import functionalize
from normfuse.passes.lift import lift
from normfuse.passes.pipeline import run_pipeline
from normfuse.passes.rotate import give_rotation
from normfuse.passes.work import Work
from normfuse.report import Report
from normfuse.rule_names import RULE_NAMES
from normfuse.verify import run_wide, widen
from normfuse.verify.compare import comparable, relative_error, same_finiteness
from normfuse.verify.judge import BUDGET, DOUBLE_BOUND, HOPELESS, SPREAD
from normfuse.verify.oracle import execute_wide, wide_arithmetic
from tests.fuzz.changing import stays_current
from tests.fuzz.network import Case, build, copies, retyped
from tests.fuzz.reached import State, States
from tests.fuzz.recipe import Recipe

__all__ = ["FIRES", "check"]

FIRES = ("functionalize", "canonicalize", "lift", "centre explicitly", "hoist", *RULE_NAMES)
"""What has to happen in the networks, often enough for their outcome to say something about it."""

DRAWS = 9
"""How many draws of inputs and weights say whether an error in a narrow dtype is systematic.

The ratio of two rounding errors of n numbers varies by 1/sqrt(n). Means that cancel between writers add to
that: where only one of them may be centred, a LayerNorm that stays may see a larger mean than before, in one
draw, and a smaller one in the next. A loss of precision that a rewrite causes is there in every draw.
"""

TARGETS: tuple[dict[str, Any], ...] = (
    {}, {"target": "crms_norm"}, {"target": "crms_norm", "crms_basis": "orthonormal"}, {"rotation": True},
)  # fmt: skip
"""What a network may be rewritten to; a rotation is a random one of its width."""

BEYOND_CHANCE = 1000.0
"""The ratio that no cancellation explains: means that cancel make ratios above r with a chance of 1/r."""

CONDITION = 64
"""How far gradients may be apart, in units of what one unit in the last place of every weight changes.

Where a norm sees two channels its output hardly depends on them, and every gradient behind it is what is
left of numbers that cancel; no bound that looks at the size of the result alone would hold.
"""

GRADIENT_BOUND = 64 * DOUBLE_BOUND
"""Relative L2 difference of gradients: a norm's derivative subtracts two projections of a cotangent, and
each of the up to 13 norms of a network loses up to two bits of what the forward pass has."""


def check(recipe: Recipe, thorough: bool = False) -> Counter[str]:
    """Hold a network against the properties; returns what happened to it, for counting.

    Equality in float64 and bitwise lifting always; of the dearer others one, by the network's seed, or all of
    them when ``thorough``.

    Raises:
        AssertionError: naming the property.
    """
    case = build(recipe, torch.float64)
    as_traced = thorough or recipe.dynamic or recipe.seed % 8 == 1
    captured = case.capture(described=as_traced)
    program = case.program(captured if as_traced else retyped(captured, case))
    fired = _same_function(case, program)
    if not thorough and recipe.dynamic:
        return fired
    everything = [
        lambda: _idempotent(program),
        lambda: _same_gradients(program, case) if fired["converted"] else None,
        lambda: _rules_commute(program, case, thorough),
        lambda: _close_enough(program, recipe, torch.float32),
        lambda: _close_enough(program, recipe, torch.bfloat16),
        lambda: stays_current(copied(program), recipe.seed),
    ]
    for holds in everything if thorough else [everything[recipe.seed % len(everything)]]:
        holds()
    return fired


def asked(recipe: Recipe) -> dict[str, Any]:
    """The options under which a network is rewritten, by its seed."""
    options = TARGETS[recipe.seed // 64 % len(TARGETS)]
    if any(step.variant == "read_by_norms" for step in recipe.steps):
        options = {**options, "allow": "approximate"}
    if "rotation" not in options:
        return options
    generator = torch.Generator().manual_seed(recipe.seed)
    random = torch.randn(recipe.width, recipe.width, generator=generator, dtype=torch.float64)
    return {**options, "rotation": torch.linalg.qr(random).Q}


def yardstick(program: Program, recipe: Recipe) -> Program:
    """What the rewritten program is to be equal to: the original, or it with approximate rules alone."""
    if "allow" not in asked(recipe):
        return program
    return rewritten(program, only=["drop_inner"], allow="approximate")[0]


def copied(program: Program) -> Program:
    """The same program over a graph of its own; Python code for it is made when it is called."""
    graph = Graph()
    nodes: dict = {}
    graph.output(graph.graph_copy(program.gm.graph, nodes))
    inputs = [Input(nodes[i.node], i.role, i.name, i.value, i.owner) for i in program.inputs]
    return Program(_LazyGraphModule(program.gm, graph), inputs, program.copies_tables, program.grad_enabled)


def rewritten(program: Program, **options) -> tuple[Program, Report, list[Tensor]]:
    """A rewritten copy, what happened, and the weights behind its last inputs."""
    made, added = copied(program), list[Tensor]()
    asked_for = Options.checked(options, prefix="")
    if asked_for.rotation is not None:
        give_rotation(made, asked_for.rotation)
        added.append(asked_for.rotation)
    try:
        report, folded = run_pipeline(made, asked_for)
    except OptionError as error:
        if "rotation is" not in str(error):
            raise
        return rewritten(program, **{k: v for k, v in options.items() if k == "allow"})
    made.gm.graph.lint()
    made.gm.recompile()
    weights = made.weights
    tensors = [one.recipe.compute([weights[s].value for s in one.sources]) for one in folded]
    new = [Input(f.node, Role.PARAMETER, f.node.name, t) for f, t in zip(folded, tensors, strict=True)]
    whole = Program(made.gm, [*made.inputs, *new], made.copies_tables, made.grad_enabled)
    return whole, report, [*added, *tensors]


def evaluate(gm: GraphModule, given: Sequence[Tensor], weights: Sequence[Tensor], kept: int) -> list[Tensor]:
    """The outputs on copies of all inputs, and the first ``kept`` of those copies as the call left them."""
    own = copies([*given, *weights])
    torch.manual_seed(3)
    with torch.no_grad():
        outputs = gm(*own)
    return [*outputs, *own[:kept]]


def _same_function(case: Case, program: Program) -> Counter[str]:
    made, report, folded = rewritten(program, **asked(case.recipe))
    weights, kept = [*case.weights, *folded], len(case.arguments)
    before = yardstick(program, case.recipe)
    for given in [case.given, *_other_sizes(case, program)]:
        wanted = evaluate(before.gm, given, case.weights, kept)
        found = evaluate(made.gm, given, weights, kept)
        if not _almost_equal(_laid_out_as_told(wanted, found, before.gm), found):
            _close_enough(program, case.recipe, torch.float64)
    lay, lies = _memory(program.gm, case, []), _memory(made.gm, case, folded)
    assert lay == lies, f"outputs lie in the memory of {lies} and did in that of {lay}"
    return _fired(report, len(folded)) + _lifting_is_bitwise(program, case)


def _laid_out_as_told(wanted: list[Tensor], found: Sequence[Tensor], gm: GraphModule) -> list[Tensor]:
    """The outputs, where what was found lies as PyTorch told of the graph and not as its kernels laid it.

    The two differ where an axis of size 1 says in which order the others lie.
    """
    told = [one.meta.get("val") for one in tree_leaves(gm.graph.output_node().args)]
    for index, (value, w, f) in enumerate(zip(told, wanted, found, strict=False)):
        if isinstance(value, Tensor) and _layout(w) != _layout(f) == _layout(value):
            wanted[index] = torch.empty_like(f).copy_(w)
    return wanted


def _memory(gm: GraphModule, case: Case, folded: Sequence[Tensor]) -> list[list[str]]:
    """For each output whose memory it lies in: an input's, another output's, a folded weight's."""
    own, hidden = copies([*case.given, *case.weights]), copies(folded)
    torch.manual_seed(3)
    with torch.no_grad():
        outputs = gm(*own, *hidden)
    groups = {"input": own, "output": outputs, "folded": hidden}
    named = [(f"{name} {i}", t) for name, group in groups.items() for i, t in enumerate(group)]
    return [[n for n, t in named if torch._C._is_alias_of(t, output)] for output in outputs]


def _other_sizes(case: Case, program: Program) -> list[tuple[Tensor, ...]]:
    """Inputs of other sizes, where the capture has not made the sizes fixed."""
    if not case.recipe.dynamic:
        return []
    given = case.other_sizes()
    try:
        evaluate(program.gm, given, case.weights, 0)
    except RuntimeError:
        return []
    return [given]


def _almost_equal(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Whether all differences are what another order of sums makes in float64."""
    assert len(wanted) == len(found), f"{len(found)} outputs for {len(wanted)}"
    pairs = enumerate(zip(wanted, found, strict=True))
    return all(_difference(index, w, f) <= DOUBLE_BOUND for index, (w, f) in pairs)


def _difference(index: int, wanted: Tensor, found: Tensor) -> float:
    assert (w := _layout(wanted)) == (f := _layout(found)), f"output {index} is {f} and was {w}"
    assert same_finiteness(wanted, found), f"output {index} is finite elsewhere"
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(wanted, found) else float("inf")
    r, c, _ = comparable(wanted, found, wanted.double())
    return relative_error(c, r)


def _layout(value: Tensor) -> tuple[object, ...]:
    """Shape, type, and strides where they say where something lies."""
    strides = (s for s, size in zip(value.stride(), value.shape, strict=True) if size > 1)
    return tuple(value.shape), value.dtype, tuple(strides)


def _lifting_is_bitwise(program: Program, case: Case) -> Counter[str]:
    """The stages that must not change a bit; returns which of them had something to do."""
    work = Work(copied(program), Options())
    done = {"functionalize": functionalize(work.program.gm), "canonicalize": canonicalize(work.program.gm)}
    lift(work)
    done["lift"] = len(work.report.sites)
    work.program.gm.recompile()
    kept = len(case.arguments)
    wanted = evaluate(program.gm, case.given, case.weights, kept)
    for w, f in zip(wanted, evaluate(work.program.gm, case.given, case.weights, kept), strict=True):
        assert torch.equal(w.nan_to_num(3.7), f.nan_to_num(3.7)), "lifting changes bits"
    return Counter(name for name, count in done.items() if count)


def _idempotent(program: Program) -> None:
    options = {"policy": "pays"}
    once, first, _ = rewritten(program, **options)
    _, second, folded = rewritten(once, **options)
    merged = Counter(site.becomes for site in first.sites if site.merged_into)
    left, found = _lifted(first.after, first) - merged, _lifted(second.found, second)
    assert left == found, f"a second lift finds {found}, not {left}"
    changed = [s for s in second.sites if s.action != "kept"]
    assert not changed, f"a second run changes {len(changed)} norms more"
    assert not folded, f"a second run folds {len(folded)} weights more"


def _lifted(kinds: dict[str, int], report: Report) -> Counter[str]:
    """The kinds without norms of repeated values, which are recorded and not lifted: maps pass through."""
    repeated = (s for s in report.sites if s.refusal is not None and s.refusal.code == "broadcast_source")
    return Counter(kinds) - Counter(site.kind for site in repeated)


def _same_gradients(program: Program, case: Case) -> None:
    """The derivative of a random projection of the outputs, before the algebra leaves the graph.

    Both graphs are widened, so that casts to narrow dtypes inside the network round nothing.
    """
    made = _in_training(copied(program))
    with patch("normfuse.passes.pipeline.hoist", lambda _: []):
        run_pipeline(made, Options(policy="convert", **(asked(case.recipe) | {"rotation": None})))
    made.gm.recompile()
    try:
        wide, wide_made = widen(program.gm), widen(made.gm)
        wanted = _gradients(wide, case)
    except (VerificationError, RuntimeError):
        return  # an original that autograd refuses, after an edit in place, has no gradients to keep
    found = _gradients(wide_made, case)
    errors = _apart(wanted, found)
    if max(errors, default=0.0) > GRADIENT_BOUND:
        noise = _apart(wanted, _gradients(wide, case, nudge=torch.finfo(torch.float64).eps))
        for index, (error, own) in enumerate(zip(errors, noise, strict=True)):
            assert error <= max(GRADIENT_BOUND, CONDITION * own), f"gradient {index} differs by {error:.3g}"


def _in_training(program: Program) -> Program:
    """The same program as it is compiled where gradients are recorded: its weights train."""
    inputs = [
        replace(i, value=i.value.detach().requires_grad_())
        if i.is_weight and i.value.is_floating_point()
        else i
        for i in program.inputs
    ]
    return replace(program, inputs=inputs, grad_enabled=True)


def _apart(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> list[float]:
    """Relative differences; a gradient that is almost nothing beside the others counts beside them."""
    size = 1e-3 * max((float(w.norm()) for w in wanted), default=0.0)
    pairs = zip(wanted, found, strict=True)
    return [float((w - f).norm()) / max(float(w.norm()), size, 1e-300) for w, f in pairs]


def _gradients(gm: GraphModule, case: Case, nudge: float = 0.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    given = [t.clone() for t in case.given]
    weights = [w.detach() * (1 + nudge * torch.randn(w.shape, generator=generator)) for w in case.weights]
    weights = [w.requires_grad_() for w in weights]
    torch.manual_seed(3)
    with torch.enable_grad(), wide_arithmetic():
        results = execute_wide(gm, [*given, *weights])
        outputs = [o for o in results if isinstance(o, Tensor) and o.requires_grad]
        if not outputs:
            return []
        generator.manual_seed(1)
        loss = sum((o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outputs)
        return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))


def _rules_commute(program: Program, case: Case, thorough: bool) -> None:
    """Rules one after the other in any order, and all but one of them, are the same function.

    Orders may leave different norms: what one rule has folded away, the next need not look through.
    One of those ways by the network's seed, or all of them.
    """
    wanted = evaluate(program.gm, case.given, case.weights, len(case.arguments))
    ways = [*_orders(), *((most,) for most in combinations(RULE_NAMES, len(RULE_NAMES) - 1))]
    states, compared = States(program, rewritten), set[State]()
    for order in ways if thorough else [ways[case.recipe.seed // 5 % len(ways)]]:
        reached = states.after(order)
        if reached in compared:
            continue
        compared.add(reached)
        gm, folded = reached.program.gm, reached.folded
        found = evaluate(gm, case.given, [*case.weights, *folded], len(case.arguments))
        if not _almost_equal(wanted, found):
            named = " then ".join("+".join(rules) or "nothing" for rules in order)
            _within_noise(program, reached.program, folded, case, named)


def _orders() -> Iterator[tuple[tuple[str, ...], ...]]:
    """Each rule by itself: every pair in both orders, and every rule at both ends."""
    for first in range(len(RULE_NAMES)):
        turned = [*RULE_NAMES[first:], *RULE_NAMES[:first]]
        yield tuple((rule,) for rule in turned)
        yield tuple((rule,) for rule in reversed(turned))


def _within_noise(program: Program, made: Program, folded: list[Tensor], case: Case, named: str) -> None:
    """What differs by more than another order of sums has to be as near to float64 done widely."""
    wide = widen(program.gm)
    torch.manual_seed(3)
    oracle = run_wide(wide, case.arguments)
    reference = evaluate(program.gm, case.given, case.weights, 0)
    candidate = evaluate(made.gm, case.given, [*case.weights, *folded], 0)
    for index, (r, c, o) in enumerate(zip(reference, candidate, oracle, strict=False)):
        wide_r, wide_c, wide_o = comparable(r, c, o)
        own = relative_error(wide_r, wide_o)
        ratio = relative_error(wide_c, wide_o) / max(own, DOUBLE_BOUND / BUDGET)
        skipped = own > HOPELESS or _cancels(wide_o)
        assert skipped or ratio < BEYOND_CHANCE, f"{named}: output {index} is {ratio:.3g} times as far"


def _cancels(exact: Tensor) -> bool:
    """Whether an output is what rounding leaves of numbers around one, as all values of a network are."""
    return float(exact.norm()) <= DOUBLE_BOUND * exact.numel() ** 0.5


def _close_enough(program: Program, recipe: Recipe, dtype: torch.dtype) -> None:
    """Draw as long as some output was over the budget more often than not, up to a limit."""
    excess: Counter[int] = Counter()
    for draw in range(DRAWS):
        for index, ratio, count in _ratios(program.gm, build(recipe, dtype, draw)):
            assert ratio < BEYOND_CHANCE, (
                f"{dtype}: output {index} has {ratio:.3g} times the original's error"
            )
            excess[index] += 1 if ratio > BUDGET * (1 + SPREAD / count**0.5) else -1
        if max(excess.values(), default=0) <= 0:
            return
    raise AssertionError(f"{dtype}: over the budget in most of {DRAWS} draws: {dict(excess)}")


def _wide_runs(wide: GraphModule, case: Case) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The results in float64, and in float64 what they are for inputs and weights that are a rounding off.

    In float64 the original has no error against itself; what a rounding of its numbers does tells of networks
    that make much of it, as a cosine of large values does.
    """
    torch.manual_seed(3)
    oracle = run_wide(wide, case.arguments)
    if case.given[0].dtype != torch.float64 or case.recipe.alias:
        return oracle, oracle
    torch.manual_seed(3)
    return oracle, run_wide(wide, [_a_rounding_off(value) for value in case.arguments])


def _a_rounding_off(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    generator = torch.Generator().manual_seed(value.numel())
    signs = torch.randint(0, 2, value.shape, generator=generator, dtype=value.dtype) * 2 - 1
    return value * (1 + torch.finfo(value.dtype).eps * signs)


def _ratios(captured: GraphModule, case: Case) -> Iterator[tuple[int, float, int]]:
    """For each output that can be judged: its number, its error over the original's, its elements."""
    dtype = case.given[0].dtype
    program = case.program(retyped(captured, case))
    made, report, folded = rewritten(program, **asked(case.recipe))
    if not any(site.action != "kept" for site in report.sites):
        return
    before = yardstick(program, case.recipe)
    try:
        wide = widen(before.gm)
    except VerificationError:
        return
    oracle, shaken = _wide_runs(wide, case)
    reference = evaluate(before.gm, case.given, case.weights, 0)
    candidate = evaluate(made.gm, case.given, [*case.weights, *folded], 0)
    for index, (r, c, o, s) in enumerate(zip(reference, candidate, oracle, shaken, strict=False)):
        assert same_finiteness(r, c), f"{dtype}: output {index} is finite elsewhere"
        wide_r, wide_c, wide_o = comparable(r, c, o)
        own = max(relative_error(wide_r, wide_o), relative_error(comparable(s, c, o)[0], wide_o))
        if own > HOPELESS or _cancels(wide_o) or not r.is_floating_point():
            continue
        floor = DOUBLE_BOUND / BUDGET if dtype == torch.float64 else torch.finfo(dtype).eps
        yield index, relative_error(wide_c, wide_o) / max(own, floor), r.numel()


def _fired(report: Report, folded: int) -> Counter[str]:
    """What happened to a network, each thing counted once."""
    silent = [site.kind for site in report.sites if site.action == "kept" and site.refusal is None]
    assert not silent, f"norms stay without a reason: {silent}"
    names = {f"{site.kind} {site.action}" for site in report.sites}
    names |= {f"refused {site.refusal.code}" for site in report.sites if site.refusal is not None}
    changed = any(site.action != "kept" for site in report.sites)
    names |= {"converted"} if changed else set()
    names |= {rule for site in report.sites for rule in site.rules}
    names |= {"centre explicitly"} if report.centrings else set()
    names |= {"hoist"} if folded else set()
    return Counter(names)
