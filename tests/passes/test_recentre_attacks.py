"""Networks that a careless analysis would get wrong: rewritten and compiled, against the original."""

from __future__ import annotations

import io

import pytest
import torch

import normfuse
from tests.passes import attacks_layout, attacks_memory, attacks_norms, attacks_readers, attacks_weights
from tests.passes.building import (
    EXACT,
    D,
    Net,
    compiled,
    distance,
    evaluate,
    normal,
    outcome,
    param,
    randomised,
    rewritten,
)

MODULES = (attacks_layout, attacks_memory, attacks_norms, attacks_readers, attacks_weights)
ATTACKS = [
    pytest.param(attack, id=f"{module.__name__.rsplit('_', 1)[1]}-{name}")
    for module in MODULES
    for name, attack in module.ATTACKS.found.items()
]


def _is_seen_otherwise(one):
    return one.id.startswith(("memory", "weights")) or one.values[0].compiled is not None


def _by(attacks, *, default):
    return [
        pytest.param(*one.values, id=one.id, marks=[] if default(index, one) else [pytest.mark.slow])
        for index, one in enumerate(attacks)
    ]


#: What a compiler sees in another way than an export goes both ways in every run: who shares memory, and what
#: differs by intent. Of the others every third is compiled and the rest is rewritten.
COMPILED = _by(ATTACKS, default=lambda index, one: index % 3 == 0 or _is_seen_otherwise(one))
REWRITTEN = _by(ATTACKS, default=lambda index, one: index % 3 != 0 or _is_seen_otherwise(one))


@pytest.mark.parametrize("attack", REWRITTEN)
def test_rewriting_keeps_the_function(attack):
    difference, report = rewritten(attack.model(), attack.args())
    assert difference <= attack.tolerance
    assert outcome(report) == (attack.converted, set(attack.codes))


@pytest.mark.parametrize("attack", COMPILED)
def test_compiling_keeps_the_function(attack):
    difference, report = compiled(attack.model(), attack.args())
    allowed = attack.tolerance if attack.compiled_tolerance is None else attack.compiled_tolerance
    assert difference <= allowed
    assert outcome(report)[0] == (attack.converted if attack.compiled is None else attack.compiled)


def test_most_attacks_are_about_more_than_refusing():
    converted = [a.values[0].converted for a in ATTACKS]
    assert sum(1 for c in converted if c) > len(converted) / 3
    assert sum(1 for c in converted if not c) > len(converted) / 3


def transformer(s, x):
    h = s.lin(x) + s.pos[: x.shape[1]]
    h = h + s.g * s.lin2(s.ln(h)[..., :5])
    return s.ln2(torch.cat([h, h.flip(1)], 1)).flatten(1)


def varying(run=transformer):
    return randomised(Net(run, {"pos": param(9, D), "g": param(D)}))


@pytest.mark.parametrize("sizes", [(D, D), (2, 3), (5, 9), (9, 2)])
def test_exported_with_symbolic_sizes(sizes):
    model = varying()
    batch, length = torch.export.Dim("batch", min=2, max=50), torch.export.Dim("length", min=2, max=9)
    made = normfuse.rewrite(model, (normal(4, 5, 5),), dynamic_shapes=(({0: batch, 1: length},),))
    assert outcome(made.report) == (2, set())
    x = (normal(*sizes, 5),)
    assert distance(evaluate(made.module(), x), evaluate(model, x)) <= EXACT


def test_compiled_with_symbolic_sizes():
    model, reference = varying(), varying()
    options = {"normfuse.inner": "eager"}
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options=options, dynamic=True)
    for sizes in [(D, D), (2, 3), (5, 9), (7, D)]:
        x = (normal(*sizes, 5),)
        assert distance(evaluate(fast, x), evaluate(reference, x)) <= EXACT
    assert outcome(normfuse.last_report()) == (2, set())


def test_symbolic_sizes_that_could_be_the_width_are_not_taken_for_it():
    def summed(s, x):
        return s.ln((s.lin(x) @ s.lin2(x).mT)[..., :D] * 1.0), s.ln2(s.lin(x).mT[..., :D].contiguous())

    model = varying(summed)
    length = torch.export.Dim("length", min=D + 1, max=20)
    made = normfuse.rewrite(model, (normal(2, 8, 5),), dynamic_shapes=(({1: length},),))
    assert outcome(made.report)[0] == 0
    x = (normal(2, D + 1, 5),)
    assert distance(evaluate(made.module(), x), evaluate(model, x)) <= EXACT


def loaded(model, args):
    with torch.no_grad():
        exported = torch.export.export(model, args, strict=False)
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


@pytest.mark.parametrize(
    "name", ["written_through_a_view", "buffer_changes_through_a_view", "added_in_place"]
)
def test_a_loaded_program_still_knows_what_shares_memory(name):
    attack = attacks_memory.ATTACKS.found[name]
    exported = loaded(attack.model(), attack.args())
    made = normfuse.rewrite(exported)
    wanted = evaluate(attack.model(), attack.args())
    assert distance(evaluate(made.module(), attack.args()), wanted) <= EXACT
    assert outcome(made.report) == (attack.converted, set(attack.codes))


def test_writes_behind_a_nonlinearity_of_a_loaded_program():
    def run(s, x):
        h = torch.relu(s.lin(x))
        h.view(-1)[3:9].add_(4.0)
        return s.ln(h * 2), s.ln2(h * 3)

    model = varying(run)
    made = normfuse.rewrite(loaded(model, (normal(D, D, 5),)))
    x = (normal(D, D, 5, seed=3),)
    assert distance(evaluate(made.module(), x), evaluate(model, x)) <= EXACT
    assert outcome(made.report)[0] == 0


def test_autocast_around_the_call_keeps_the_types():
    def run(s, x):
        h = s.lin(x)
        return s.ln2(h + s.lin2(s.ln(h)[..., :5]))

    model = varying(run).float()
    x = (normal(D, D, 5).float(),)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        difference, report = compiled(model, x)
    assert difference < 0.03
    assert outcome(report)[0] == 2
    assert report.folded == 4  # those of lin2 once, with the norm before it, and not without it as well


def test_the_comparison_can_fail():
    model = varying()
    x = (normal(D, D, 5),)
    wanted = evaluate(model, x)
    with torch.no_grad():
        model.pos[1, 2] += 1e-9
    assert distance(evaluate(model, x), wanted) > EXACT
