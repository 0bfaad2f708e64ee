"""Two programs from their files alone: small changes are found, equal programs pass."""

from __future__ import annotations

import json

import pytest
import torch
from torch.export import Dim

import normfuse
from normfuse.files import json_text
from normfuse.pt2 import save_program
from normfuse.verify.index_bounds import index_bound
from normfuse.verify.programs import cases_of, compare_programs
from normfuse.verify.random_inputs import random_values
from normfuse.verify.signature import leaves_of
from normfuse.verify.sizes import stored_sizes
from tests.backends.networks import example, prenorm
from tests.programs.models import small_program

pytestmark = pytest.mark.rounding


def changed(name, change):
    """The small program with one stored tensor changed."""
    program = small_program()
    with torch.no_grad():
        program.state_dict[name].copy_(change(program.state_dict[name]))
    return program


def judged(candidate, reference=None, **options):
    reference = reference or small_program()
    cases = cases_of(reference, **{"random": 1, "hostile": False, **options})
    return compare_programs(reference, candidate, cases)


def test_a_program_passes_against_itself():
    found = judged(small_program(), random=2, hostile=True)
    assert found.ok
    assert found.error_ratio <= 1
    kinds = [case.kind for case in found.cases]
    assert kinds[:3] == ["stored", "random", "random"]
    assert [case.name for case in found.cases[1:3]] == ["random 1, x.size(0)=3", "random 2"]
    assert set(kinds[3:]) == {"hostile"}


def test_a_rewritten_program_passes_also_on_hostile_inputs(tmp_path):
    program = small_program(depth=1)
    save_program(program, tmp_path / "a.pt2")
    normfuse.rewrite(program).save(tmp_path / "b.pt2")
    found = normfuse.verify(tmp_path / "a.pt2", tmp_path / "b.pt2")
    assert found.ok, str(found)
    assert [case.kind for case in found.cases] == ["stored", "random", *["hostile"] * 4]
    assert json.loads(json.dumps(found.to_dict()))["cases"][0]["name"] == "stored"


def test_a_weight_changed_by_a_thousandth_is_found():
    assert not judged(changed("blocks.0.up.weight", lambda w: w * 1.001)).ok


def test_one_entry_changed_by_a_thousandth_is_found():
    def change(weight):
        made = weight.clone()
        made.view(-1)[0] *= 1.001
        return made

    assert not judged(changed("blocks.1.down.weight", change)).ok


def test_swapped_norm_weights_are_found():
    program = small_program()
    a, b = (program.state_dict[f"blocks.{i}.norm.weight"] for i in (0, 1))
    with torch.no_grad():
        kept = a.clone()
        a.copy_(b)
        b.copy_(kept)
    assert not judged(program).ok


def test_another_eps_is_found():
    model = prenorm(dtype=torch.float32)
    model.blocks[0].norm.eps = 1e-6
    with torch.no_grad():
        program = torch.export.export(
            model, (example(dtype=torch.float32),), dynamic_shapes=({0: Dim("batch", min=2, max=64)},)
        )
    assert not judged(program).ok


def test_fewer_sizes_are_found():
    """A candidate for one batch size only is not the same function."""
    with torch.no_grad():
        program = torch.export.export(prenorm(dtype=torch.float32), (example(dtype=torch.float32),))
    found = judged(program, random=2)
    assert not found.ok
    assert [case.ok for case in found.cases] == [True, False, True]
    assert "the candidate does not take it" in found.cases[1].note


def test_programs_with_other_inputs_are_no_versions_of_one_another():
    class Two(torch.nn.Module):
        def forward(self, x, y):
            return x + y

    other = torch.export.export(Two(), (example(), example()))
    with pytest.raises(normfuse.VerificationError, match=r"takes \(x\), the candidate \(x, y\)"):
        judged(other)


def test_what_cannot_be_judged_is_not_equivalent():
    """A reference that takes none of the inputs proves nothing."""

    class Lookup(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(4, 3)

        def forward(self, i):
            return self.table(i)

    program = torch.export.export(Lookup(), (torch.tensor([9]),))
    found = judged(program, program, random=0)
    assert not found.ok
    assert found.cases[0].note.startswith("the reference does not take it: IndexError")


class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = torch.nn.Embedding(11, 4), torch.nn.Embedding(5, 4)

    def forward(self, tokens, places, mask, flag):
        x = self.words(tokens.view(-1, tokens.shape[-1])) + self.places(places[None])
        return x * mask[..., None] + flag


def tokens_program():
    inputs = (torch.full((2, 3), 7), torch.arange(3), torch.tensor([[1, 1, 0]] * 2), True)
    length = Dim("length", min=2, max=9)
    shapes = ({0: Dim("batch"), 1: length}, {0: length}, {0: Dim("batch"), 1: length}, None)
    return torch.export.export(Tokens(), inputs, dynamic_shapes=shapes)


def test_integers_stay_within_the_table_that_they_index():
    program = tokens_program()
    leaves = leaves_of(program)
    assert [leaf.bound for leaf in leaves] == [11, 5, None, None]
    sizes = stored_sizes(program, leaves)
    seen = [random_values(leaves, sizes, seed) for seed in range(20)]
    tokens, places, masks = (torch.stack([values[i] for values in seen]) for i in range(3))
    assert tokens.unique().tolist() == list(range(11))
    assert places.unique().tolist() == list(range(5))
    assert masks.unique().tolist() == [0, 1]
    assert all(values[3] is True for values in seen)


def test_every_generated_case_of_it_runs():
    program = tokens_program()
    cases = cases_of(program, random=4)
    assert {"first rows only", "last rows only"} <= {case.name for case in cases}
    found = compare_programs(program, program, cases)
    assert found.ok
    assert not [case.note for case in found.cases if case.note]
    sizes = {tuple(case.args[0].shape) for case in cases}
    assert sizes == {(2, 3), (3, 2)}


def test_a_tensor_that_indexes_nothing_has_no_bound():
    program = tokens_program()
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    assert index_bound(nodes["mask"]) is None


def test_files_need_no_inputs_but_models_do(tmp_path):
    save_program(small_program(), tmp_path / "a.pt2")
    with pytest.raises(normfuse.InputError, match="both reference and candidate"):
        normfuse.verify(tmp_path / "a.pt2", prenorm())
    assert normfuse.verify(tmp_path / "a.pt2", tmp_path / "a.pt2", (example(3, torch.float32),)).ok


def test_a_boolean_mask_is_no_index():
    class Masked(torch.nn.Module):
        def forward(self, x, mask):
            return x[mask]

    program = torch.export.export(Masked(), (torch.randn(3, 4), torch.tensor([True, False, True])))
    assert [leaf.bound for leaf in leaves_of(program)] == [None, None]


def test_figures_that_are_not_finite_are_valid_json():
    def refuse(text):
        raise AssertionError(text)

    text = json_text({"error_ratio": float("inf"), "leaves": [{"max_abs_error": float("nan"), "ok": False}]})
    held = json.loads(text, parse_constant=refuse)
    assert held == {"error_ratio": "inf", "leaves": [{"max_abs_error": "nan", "ok": False}]}


class Overflowing(torch.nn.Module):
    """x / x by a detour that only float64 survives for 1e30, and a nan wherever x is nan."""

    def __init__(self, detour):
        super().__init__()
        self.detour = detour

    def forward(self, x):
        return x * (x * x) / (x * x * x) if self.detour == "overflows" else self.ratio(x)

    def ratio(self, x):
        return (x / x).nan_to_num(nan=1.0) if self.detour == "hides nan" else x / x


def test_an_overflow_of_the_reference_says_nothing_and_a_hidden_nan_does():
    x = torch.rand(4, 6) + 1
    reference, better, wrong = (
        torch.export.export(Overflowing(detour), (x,)) for detour in ("overflows", "", "hides nan")
    )
    found = {case.name: case for case in judged(better, reference, hostile=True, thorough=True).cases}
    assert not torch.isfinite(reference.module()(torch.full((4, 6), 1e30))).any()
    assert found["1e30"].ok
    assert not found["1e30"].equivalence.leaves[0].judged
    assert found["nan"].ok
    found = {case.name: case for case in judged(wrong, reference, hostile=True).cases}
    assert not found["nan"].ok
