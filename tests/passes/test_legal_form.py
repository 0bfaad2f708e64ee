"""The legal form of every stage: what breaks it is named, with the stage and the node, in strict mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.fx import Graph

import normfuse
from normfuse.capture.exported import open_sizes, program_of
from normfuse.errors import InvariantError
from normfuse.folding.recipe import FOLD
from normfuse.ir.calls import aten
from normfuse.ir.emit import call
from normfuse.ir.region import NormRegion, norms_in
from normfuse.options import Options
from normfuse.passes import pipeline
from normfuse.passes.legal_form import LegalForm
from normfuse.passes.pipeline import STAGES, run_pipeline
from normfuse.passes.work import Work
from tests.passes.building import FEATURES, D, Net, normal, randomised


def network() -> Net:
    return randomised(Net(lambda s, x: s.ln2(s.lin(x) + s.lin2(s.ln(s.lin(x))[..., :FEATURES])), {}))


def outcome(model: nn.Module | None = None) -> normfuse.Rewritten:
    return normfuse.rewrite(model or network(), (normal(2, 3, FEATURES),), verify="off")


def node_of(work: Work, target: object) -> torch.fx.Node:
    """The last node that calls an operator: no algebra on weights."""
    return [n for n in work.program.gm.graph.nodes if n.target is target][-1]


def other_value(work: Work) -> None:
    node = node_of(work, aten.add.Tensor)
    node.meta["val"] = node.meta["val"].new_empty(2, 3, D + 1)


def other_strides(work: Work) -> None:
    node = node_of(work, aten.add.Tensor)
    node.meta["val"] = node.meta["val"].new_empty(D, 3, 2).permute(2, 1, 0)


def other_dtype(work: Work) -> None:
    node = node_of(work, aten.add.Tensor)
    node.meta["val"] = node.meta["val"].float()


def no_value(work: Work) -> None:
    del node_of(work, aten.add.Tensor).meta["val"]


def value_of_a_norm(work: Work) -> None:
    node, _ = norms_in(work.program.gm)[0]
    node.meta["val"] = node.meta["val"].float()


def body_of_another_width(work: Work) -> None:
    node, region = norms_in(work.program.gm)[0]
    body = Graph()
    body.output(body.graph_copy(region.body, {}))
    inner = next(n for n in body.nodes if n.op == "call_function")
    inner.meta["val"] = inner.meta["val"].new_empty(1)
    work.program.gm.add_submodule(str(node.target), NormRegion(region.spec, body, region.spelling))


def operands_that_do_not_fit(work: Work) -> None:
    node = node_of(work, aten.linear.default)
    node.args = (node.args[0], node.args[2], node.args[2])


def norm_without_site(work: Work) -> None:
    work.sites.popitem()


def site_without_norm(work: Work) -> None:
    work.sites[node_of(work, aten.add.Tensor)] = next(iter(work.sites.values()))


def operand_too_many(work: Work) -> None:
    node, _ = norms_in(work.program.gm)[0]
    node.args = (*node.args, node.args[-1])


def algebra_on_inputs(work: Work) -> None:
    node_of(work, aten.add.Tensor).meta[FOLD] = True


def algebra_that_draws(work: Work) -> None:
    graph = work.program.gm.graph
    weight = next(iter(work.program.weights))
    with graph.inserting_before(node_of(work, aten.linear.default)):
        call(graph, aten.rand_like.default, weight).meta[FOLD] = True


def unknown_mark(work: Work) -> None:
    node_of(work, aten.add.Tensor).meta["normfuse_whim"] = True


def placeholder_of_nobody(work: Work) -> None:
    graph = work.program.gm.graph
    with graph.inserting_before(next(iter(graph.nodes))):
        graph.placeholder("extra").meta["val"] = torch.ones(1)


def input_that_is_gone(work: Work) -> None:
    node = next(n for n in work.program.weights if n.name == "p_ln2_bias")
    node.replace_all_uses_with(next(iter(work.program.weights)))
    work.program.gm.graph.erase_node(node)


def inputs_in_another_order(work: Work) -> None:
    first, second = list(work.program.gm.graph.nodes)[:2]
    second.append(first)


def operand_that_comes_later(work: Work) -> None:
    node = node_of(work, aten.linear.default)
    node.replace_input_with(node.args[0], node_of(work, aten.add.Tensor))


FAULTS: dict[Callable[[Work], None], str] = {
    other_value: r"add.*: the shape \(2, 3, 7\) is recorded, and it is \(2, 3, 6\)",
    other_strides: r"add.*: the strides \(1, 2, 6\) is recorded, and it is \(18, 6, 1\)",
    other_dtype: r"add.*: the dtype torch.float32 is recorded, and it is torch.float64",
    no_value: "add.*: no value is recorded",
    value_of_a_norm: "norm.* in its body: the dtype torch.float64 is recorded, and it is torch.float32",
    body_of_another_width: r"norm.* in its body: the shape \(1,\) is recorded",
    operands_that_do_not_fit: "linear.*: does not take its operands",
    norm_without_site: "a norm has no site",
    site_without_norm: "add.*: a norm that has a site is not in the graph",
    operand_too_many: r"norm_0.* 1 operands more than its description",
    algebra_on_inputs: "add.*: algebra on weights reads linear",
    algebra_that_draws: "rand_like.*: algebra on weights reads what differs from call to call",
    unknown_mark: "add.*: no stage knows the mark normfuse_whim",
    placeholder_of_nobody: "extra.*: the caller passes nothing for this placeholder",
    input_that_is_gone: "p_ln2_bias.*: the program has this input and the graph does not",
    inputs_in_another_order: "is placeholder 0 of the graph, and the program's is",
    operand_that_comes_later: "used before it has been defined",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_what_a_stage_breaks_is_named_with_the_stage(
    fault: Callable[[Work], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome()
    monkeypatch.setattr(pipeline, "settle_shifts", fault)
    with pytest.raises(InvariantError, match=r"after settle_shifts.*(" + FAULTS[fault] + ")"):
        outcome()


def test_algebra_that_could_have_been_folded_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "hoist", lambda program: [])
    with pytest.raises(InvariantError, match=r"after hoist.*algebra on weights is left in the graph"):
        outcome()


def test_a_weight_that_nothing_reads_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    hoist = pipeline.hoist

    def forgetful(program):
        folded = hoist(program)
        folded[0].node.replace_all_uses_with(program.inputs[0].node)
        return folded

    monkeypatch.setattr(pipeline, "hoist", forgetful)
    with pytest.raises(InvariantError, match=r"after hoist.*a weight is folded that nothing reads"):
        outcome()


def test_no_norm_is_left_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "lower", lambda *_: {})
    with pytest.raises(InvariantError, match=r"after lower.*a norm is left"):
        outcome()


def test_what_gradients_keep_may_stay() -> None:
    """Training leaves the algebra on weights in the graph, and that is no fault."""
    options = {"normfuse.inner": "eager"}
    fast = torch.compile(network(), backend=normfuse.normfuse_backend, options=options)
    fast(normal(2, 3, FEATURES)).sum().backward()


def test_nothing_is_looked_at_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(LegalForm, "stage", lambda self, name, work: seen.append(name))
    outcome()
    assert seen == [name for name, _ in STAGES]
    monkeypatch.setenv("NORMFUSE_STRICT", "0")
    outcome()
    assert seen == [name for name, _ in STAGES]


@pytest.mark.parametrize("strict", ["0", "1"])
def test_looking_asks_nothing_of_open_sizes(strict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known about the sizes afterwards is what the rewrite itself has found out."""
    monkeypatch.setenv("NORMFUSE_STRICT", strict)
    model, args = network(), (normal(2, 3, FEATURES),)
    program = program_of(torch.export.export(model, args, dynamic_shapes=open_sizes(model, args, None)))
    value = next(n.meta["val"] for n in program.gm.graph.nodes if n.op == "call_function")
    known = value.fake_mode.shape_env
    assert any(isinstance(size, torch.SymInt) for size in value.shape)
    before = (len(known.guards), dict(known.replacements), dict(known.axioms), dict(known.var_to_range))
    run_pipeline(program, Options())
    after = (len(known.guards), dict(known.replacements), dict(known.axioms), dict(known.var_to_range))
    assert before == after
