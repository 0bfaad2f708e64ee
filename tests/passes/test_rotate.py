"""A stream that is turned by an orthogonal matrix: the same function, and what turns is what should."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normfuse
from tests.passes.building import Collection, D, normal, randomised, rewritten
from tests.passes.test_recentre_attacks import ATTACKS


def orthogonal(d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q


Q = orthogonal(D)


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(a.values[0], id=a.id, marks=[] if index % 2 else [pytest.mark.slow])
        for index, a in enumerate(ATTACKS)
    ],
)
def test_every_attack_on_recentring(attack):
    """Where no norm is one of so many channels and without a mean, the rotation is refused."""
    try:
        difference, report = rewritten(attack.model(), attack.args(), rotation=Q)
    except normfuse.OptionError as error:
        difference, report, message = 0.0, normfuse.Report(), str(error)
    else:
        message = "rotation is 6 x 6, and"
    assert "rotation is 6 x 6, and" in message
    assert difference <= attack.tolerance
    for site in report.sites:
        reached = "rotate" in site.rules or "rotate" in site.refusals
        assert reached or site.becomes != "rms_norm" or site.spec["dims"] != [-1] or site.refusal is not None


cases = Collection()


@cases(2, extras=lambda: {"square": nn.Linear(D, D)})
def one_layer_reads_and_writes(s, x):
    h = s.lin(x)
    h = h + s.square(s.ln(h))
    return s.square(s.ln2(h))


@cases(2, extras=lambda: {"norm": nn.RMSNorm(D), "last": nn.RMSNorm(D), "square": nn.Linear(D, D)})
def rms_norms(s, x):
    h = s.lin(x)
    h = h + s.square(s.norm(h)).relu() @ s.square.weight
    return s.square(s.last(h))


@cases(1, extras=lambda: {"norm": nn.RMSNorm(D)})
def nothing_can_turn_it_back(s, x):
    return s.norm(s.lin(x)).relu()


@cases(2, extras=lambda: {"norm": nn.RMSNorm(D), "last": nn.RMSNorm(D), "table": nn.Embedding(9, D)},
    args=lambda: (torch.arange(8).view(2, 4),))  # fmt: skip
def a_tied_table(s, tokens):
    h = s.table(tokens)
    h = h + s.norm(h) @ s.lin2.weight @ s.lin2.weight.T
    return s.last(h) @ s.table.weight.T


@cases(0, extras=lambda: {"norm": nn.RMSNorm(D)})
def a_layer_norm_that_stays_reads_it_too(s, x):
    h = s.lin(x)
    return s.ln(h), s.norm(h)


@cases(2, extras=lambda: {"norm": nn.RMSNorm(D)}, args=lambda: (normal(2, D, 3, 5),))
def a_view_behind_channels_in_front(s, x):
    """No weight writes the values, which are turned where they lie."""
    h = x.relu()
    front = h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 0.1)
    return front, s.norm(h.view(2, D, 15).transpose(1, 2))


@cases(0, extras=lambda: {"norm": nn.RMSNorm(D)})
def a_channel_is_read(s, x):
    h = s.lin(x)
    return s.norm(h), h[..., 0]


@pytest.mark.parametrize("name", cases.found)
def test_what_turns(name):
    case = cases.found[name]
    difference, report = rewritten(case.model(), case.args(), rotation=Q, skip=["compress"])
    assert difference <= 1e-12
    assert sum("rotate" in site.rules for site in report.sites) == case.converted
    for site in report.sites:
        assert "rotate" in site.rules or site.refusals.get("rotate") or site.becomes == "layer_norm"


def test_what_cannot_go_into_weights_is_said():
    tied = cases.found["a_tied_table"]
    notes = rewritten(tied.model(), tied.args(), rotation=Q)[1].notes
    assert [n for n in notes if "3 values are rotated as the program runs" in n]
    plain = cases.found["one_layer_reads_and_writes"]
    assert not [n for n in rewritten(plain.model(), plain.args(), rotation=Q)[1].notes if "rotated" in n]


def test_weights_turn_and_another_checkpoint_can_be_turned(tmp_path):
    model = nn.Sequential(nn.Linear(5, D), nn.RMSNorm(D), nn.Linear(D, 4)).double()
    x = (normal(3, 5),)
    made = normfuse.rewrite(randomised(model), x, rotation=Q)
    state = made.program.state_dict
    torch.testing.assert_close(state["0.weight"], Q @ model[0].weight, rtol=1e-12, atol=1e-12)
    turned = (model[2].weight * model[1].weight) @ Q.T
    torch.testing.assert_close(state["2.weight"], turned, rtol=1e-12, atol=1e-12)
    assert set(state) == set(model.state_dict())
    other = {name: value + 1 for name, value in model.state_dict().items()}
    folded = made.weight_map.fold(other)
    torch.testing.assert_close(folded["0.weight"], Q @ other["0.weight"], rtol=1e-12, atol=1e-12)
    made.save(tmp_path / "turned.pt2")
    torch.testing.assert_close(
        torch.export.load(tmp_path / "turned.pt2").module()(*x), model(*x), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": 2 * Q}, "is not orthogonal: its rows are off by 3"),
        ({"rotation": orthogonal(D).float()}, "use torch.linalg.qr of a matrix in float64"),
        ({"rotation": Q[:, :3]}, r"takes a square matrix, not \(6, 3\)"),
        ({"rotation": torch.full((D, D), float("nan"))}, "is not orthogonal"),
        ({"rotation": "Q"}, "takes a square matrix, not str"),
        ({"rotation": orthogonal(4)}, "rotation is 4 x 4, and the model's RMSNorms run over 6 channels"),
        ({"rotation": Q, "skip": ["rotate"]}, "leaves out rotate"),
        ({"rotation": Q, "only": ["recentre"]}, "leaves out rotate"),
        ({"rotation": Q, "target": "crms_norm"}, "goes with target='rms_norm', not 'crms_norm'"),
    ],
)
@pytest.mark.parametrize("verify", ["off", "sites"])
def test_what_is_no_rotation_of_this_model(options, message, verify):
    case = cases.found["rms_norms"]
    with pytest.raises(normfuse.OptionError, match=message):
        normfuse.rewrite(case.model(), case.args(), verify=verify, **options)


def test_a_compiled_model_is_not_turned():
    with pytest.raises(normfuse.OptionError, match=r"is for normfuse\.rewrite"):
        torch.compile(nn.Linear(2, 2), backend="normfuse", options={"normfuse.rotation": Q})(torch.ones(2))


class Named(nn.Module):
    """Its input and a buffer of it have the name that the matrix would have."""

    def __init__(self):
        super().__init__()
        self.lin, self.norm, self.out = nn.Linear(D, D), nn.RMSNorm(D), nn.Linear(3 * D, 2)
        self.register_buffer("rotation", torch.ones(D))

    def forward(self, rotation):
        return self.out(self.norm(self.lin(rotation)).flatten(1)), self.norm(
            self.lin(rotation)
        ) * self.rotation


@pytest.mark.parametrize("verify", ["off", "sites"])
def test_a_model_with_a_rotation_of_its_own_and_a_second_one(verify, tmp_path):
    """Channels that a reshape joins with positions turn as well."""
    model, x = randomised(Named()), (normal(4, 3, D),)
    made = normfuse.rewrite(model, x, rotation=Q, verify=verify)
    again = normfuse.rewrite(made.program, rotation=orthogonal(D, 1), verify=verify)
    again.save(tmp_path / "twice.pt2")
    with torch.no_grad():
        for one in (made.module(), again.module(), torch.export.load(tmp_path / "twice.pt2").module()):
            torch.testing.assert_close(one(*x), model(*x), rtol=1e-11, atol=1e-11)
    other = {name: value + 1 for name, value in model.state_dict().items()}
    turned = (Q @ other["lin.weight"], other["rotation"])
    folded = made.weight_map.fold(other)
    torch.testing.assert_close((folded["lin.weight"], folded["rotation"]), turned, rtol=1e-12, atol=1e-12)
