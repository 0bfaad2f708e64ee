"""Values without a mean in d - 1 coordinates: the same function, in both bases, under every attack."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normfuse
from normfuse.ir.sizes import shape_of
from tests.passes.building import Collection, D, normal, param, randomised, rewritten
from tests.passes.test_recentre_attacks import ATTACKS

BASES = ("drop_last", "orthonormal")

#: Norms that lose their mean and keep all coordinates, by attack: in both bases, or in one.
KEPT = {
    "layout-one_channel": {"fixed_width"},
    "layout-split_channels": {"channel_mix"},
    "layout-split_channels_of_which_some_are_read": {"channel_mix"},
    "layout-reshape_that_splits_channels": {"channel_mix"},
    "norms-output_viewed_in_the_order_of_its_input": {"layout"},
    "layout-tokens_put_where_a_mask_says": {"fixed_width"},
    "layout-tokens_that_experts_return": {"fixed_width"},
    "readers-shape_only": {"fixed_width"},
    "norms-eps_from_a_buffer orthonormal": {"unusual_form"},
}


def kept(report: normfuse.Report) -> set[str]:
    """Why norms that recentring converts are no CRMSNorms."""
    left = [s for s in report.sites if "recentre" in s.rules and "compress" not in s.rules]
    assert all(s.becomes == "rms_norm" and s.refusal == s.refusals["compress"] for s in left)
    return {s.refusals["compress"].code for s in left}


def in_turn():
    """Each attack in both bases, one of them in every run and the other one in slow ones."""
    for index, one in enumerate(ATTACKS):
        for place, basis in enumerate(BASES):
            usual = index % 2 == place or any(one.id in name for name in KEPT)
            marks = [] if usual else [pytest.mark.slow]
            yield pytest.param(one.values[0], one.id, basis, id=f"{one.id}-{basis}", marks=marks)


@pytest.mark.parametrize(("attack", "name", "basis"), [*in_turn()])
def test_what_becomes_an_rms_norm_becomes_a_crms_norm(attack, name, basis):
    difference, report = rewritten(
        attack.model(), attack.args(), target="crms_norm", crms_basis=basis, skip=["fold_scale"]
    )
    assert difference <= attack.tolerance
    assert kept(report) == KEPT.get(name, KEPT.get(f"{name} {basis}", set()))
    assert report.after.get("crms_norm", 0) == sum("compress" in s.rules for s in report.sites)


cases = Collection()


@cases(2, extras=lambda: {"square": nn.Linear(D, D)})
def one_layer_reads_and_writes(s, x):
    """The rows and the columns of one weight change."""
    h = s.lin(x)
    return s.ln2(h + s.square(s.ln(h)))


@cases(2, extras=lambda: {"square": nn.Linear(D, D), "w": param(3, D, D)})
def experts_read(s, x):
    h = s.lin(x)
    h = h + torch.einsum("eoi,abi->abeo", s.w, s.ln(h)).sum(2)
    return s.ln2(h) @ s.square.weight


@cases(2, extras=lambda: {"square": nn.Linear(D, D)})
def sizes_are_written_out(s, x):
    h = s.lin(x).view(6, 6, D).reshape(36, D).view(6, 6, D)
    return s.square(s.ln(h).view(36, D)), s.square(s.ln2(h).expand(2, 6, 6, D))


@cases(2, extras=lambda: {"conv": nn.Conv1d(D, D, 3, padding=1), "write": nn.Conv1d(5, D, 1)})
def channels_in_front(s, x):
    h = s.write(x.transpose(1, 2)).transpose(1, 2)
    return s.conv(s.ln(h).transpose(1, 2)), s.conv(s.ln2(h).transpose(1, 2)).relu()


@cases(1, extras=lambda: {"w": param(1, 1, D)})
def a_weight_that_is_made_larger_is_read_for_its_sizes(s, x):
    table = s.w.expand(6, 6, D)
    return s.ln(s.lin(x) + table), torch.zeros_like(table) + x.sum()


@cases(2, extras=lambda: {"square": nn.Linear(D, D)})
def zeros_take_their_sizes_from_what_is_mapped(s, x):
    """The map stands behind a sum that no weight can take; what reads only its sizes reads them behind it."""
    h = s.lin(x)
    g = h + s.square(x.sin() @ torch.ones(5, D, dtype=x.dtype))
    return h.cos(), s.square(s.ln(g)), s.square(s.ln2(g + torch.zeros_like(g)))


@cases(1)
def nothing_can_undo_it(s, x):
    return s.ln(s.lin(x)).relu()


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("name", cases.found)
@pytest.mark.parametrize("skip", [[], ["fold_scale"]], ids=["folded scales", "own scales"])
def test_readers_undo_it_or_it_is_undone_behind_the_norm(name, basis, skip):
    attack = cases.found[name]
    difference, report = rewritten(
        attack.model(), attack.args(), target="crms_norm", crms_basis=basis, skip=skip
    )
    assert difference <= 1e-12
    assert report.after.get("crms_norm", 0) == attack.converted


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.up, self.down, self.out = (
            nn.Linear(5, 8),
            nn.Linear(8, 9),
            nn.Linear(9, 8),
            nn.Linear(8, 4),
        )
        self.ln, self.ln2 = nn.LayerNorm(8), nn.LayerNorm(8, eps=0.5)

    def forward(self, x):
        h = self.lin(x)
        h = h + self.down(self.up(self.ln(h)).relu())
        return self.out(self.ln2(h))


def test_writers_lose_a_row_readers_a_column_and_nothing_is_as_wide_as_before():
    model = randomised(Block())
    made = normfuse.rewrite(model, (normal(3, 5),), target="crms_norm")
    state = made.program.state_dict
    assert {n: tuple(state[n].shape) for n in ("lin.weight", "up.weight", "down.weight", "out.weight")} == {
        "lin.weight": (7, 5), "up.weight": (9, 7), "down.weight": (7, 9), "out.weight": (4, 7),
    }  # fmt: skip
    wide = [n for n in made.program.graph.nodes if n.op != "placeholder" and 8 in (shape_of(n) or ())]
    assert wide == []
    centred = model.lin.weight - model.lin.weight.mean(0)
    torch.testing.assert_close(state["lin.weight"], centred[:-1], rtol=1e-12, atol=1e-12)
    read = model.up.weight * model.ln.weight
    torch.testing.assert_close(state["up.weight"], read[:, :-1] - read[:, -1:], rtol=1e-12, atol=1e-12)


def test_the_eps_of_an_orthonormal_basis_is_that_of_one_coordinate_less():
    model = randomised(Block())
    made = normfuse.rewrite(model, (normal(3, 5),), target="crms_norm", crms_basis="orthonormal")
    norms = [n for n in made.program.graph.nodes if n.target is torch.ops.aten.rms_norm.default]
    assert [n.args[1] for n in norms] == [[7], [7]]
    assert [n.args[3] for n in norms] == pytest.approx([1e-5 * 8 / 7, 0.5 * 8 / 7])
    with torch.no_grad():
        x = normal(3, 5)
        torch.testing.assert_close(made.module()(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("policy", ["pays", "convert"])
def test_training(basis, policy):
    model = randomised(Block())
    options = {
        "normfuse.inner": "eager", "normfuse.target": "crms_norm", "normfuse.crms_basis": basis,
        "normfuse.policy": policy,
    }  # fmt: skip
    fast = torch.compile(model, backend="normfuse", options=options)
    x, y = normal(3, 5), normal(3, 4)
    gradients = []
    for run in (model, fast):
        model.zero_grad()
        F.mse_loss(run(x), y).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for wanted, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    report = normfuse.last_report(fast)
    assert report.after == ({"crms_norm": 2} if policy == "convert" else {"layer_norm": 2})
    assert all(s.refusal is not None for s in report.sites if s.becomes != "crms_norm")


def test_the_report_says_what_it_costs():
    model, x = randomised(Block()), (normal(3, 5),)
    note = "are stored in 7 coordinates instead of 8"
    assert any(note in n for n in normfuse.rewrite(model, x, target="crms_norm").report.notes)
    assert not any(note in n for n in normfuse.rewrite(model, x).report.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crms_basis": "orthonormal"}, "crms_basis goes with target='crms_norm', not with 'rms_norm'"),
        ({"target": "layer_norm", "crms_basis": "drop_last"}, "not with 'layer_norm'"),
        ({"target": "crms_norm", "crms_basis": "ortho"}, "did you mean 'orthonormal'"),
        ({"target": "crms_norm", "skip": ["compress"]}, "skip leaves out compress, which target='crms_norm'"),
        ({"only": ["compress"]}, "only asks for compress, which does not run with target='rms_norm'"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(normfuse.OptionError, match=message):
        normfuse.rewrite(randomised(Block()), (normal(3, 5),), **options)


@pytest.mark.parametrize("basis", BASES)
def test_another_checkpoint_goes_over_to_the_basis(basis):
    model, x = randomised(Block()), (normal(3, 5),)
    made = normfuse.rewrite(model, x, target="crms_norm", crms_basis=basis)
    other = {name: value * 1.5 + 1 for name, value in model.state_dict().items()}
    folded = made.weight_map.fold(other)
    model.load_state_dict(other)
    again = normfuse.rewrite(model, x, target="crms_norm", crms_basis=basis)
    assert {n: t.shape for n, t in folded.items()} == {
        n: t.shape for n, t in again.program.state_dict.items()
    }
    assert all(torch.equal(folded[name], value) for name, value in again.program.state_dict.items())


@pytest.mark.parametrize("basis", BASES)
def test_a_compiled_model_follows_its_weights(basis):
    model, x = randomised(Block()), normal(3, 5)
    options = {"normfuse.inner": "eager", "normfuse.target": "crms_norm", "normfuse.crms_basis": basis}
    fast = torch.compile(model, backend="normfuse", options=options)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(x), model(x), rtol=1e-12, atol=1e-12)
            for value in model.parameters():
                value.mul_(1.25)
    assert normfuse.last_report(fast).after == {"crms_norm": 2}


@pytest.mark.parametrize("basis", BASES)
def test_open_sizes(basis):
    model, x = randomised(Block()), normal(3, 5)
    made = normfuse.rewrite(
        model, (x,), target="crms_norm", crms_basis=basis, dynamic_shapes=({0: torch.export.Dim("rows")},)
    )
    assert made.report.after == {"crms_norm": 2}
    with torch.no_grad():
        more = normal(7, 5)
        torch.testing.assert_close(made.module()(more), model(more), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("basis", BASES)
def test_a_bias_that_may_cancel_values_stays_behind_its_norm(basis):
    model = randomised(Block()).float()
    with torch.no_grad():
        model.ln.bias.copy_(model.ln.weight * 3)
        model.ln2.bias.zero_()
    x = (normal(3, 5).float(),)
    made = normfuse.rewrite(model, x, target="crms_norm", crms_basis=basis, verify="off")
    assert made.report.after == {"crms_norm": 2}
    assert made.report.sites[0].refusals["fold_scale"].code == "large_bias"
    assert made.program.state_dict["up.weight"].shape == (9, 8)
    assert made.program.state_dict["out.weight"].shape == (4, 7)


def test_readers_that_would_overflow_stay_as_they_are():
    model = randomised(Block()).half()
    with torch.no_grad():
        model.up.weight[:, 0], model.up.weight[:, -1] = 4e4, -4e4
        model.ln.weight.fill_(1)
        model.ln.bias.zero_()
    made = normfuse.rewrite(
        model, (normal(3, 5).half(),), target="crms_norm", skip=["fold_scale"], verify="off"
    )
    assert made.report.after == {"crms_norm": 2}
    assert all(bool(t.isfinite().all()) for t in made.program.state_dict.values())
