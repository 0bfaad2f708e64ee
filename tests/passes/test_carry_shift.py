"""Biases that attention takes no notice of, or passes on: which go, which stay and why."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import normfuse
from tests.passes.building import distance, evaluate, normal

D, HEADS, E, T = 12, 4, 3, 5
X = normal(2, T, D)
aten = torch.ops.aten

#: Sums of twelve channels in float64, some units of 1.1e-16 each.
EXACT = 1e-13

Run = Callable[["Block", Tensor, Tensor, Tensor], Any]


class Block(nn.Module):
    """A norm and the three projections of it; ``run`` attends to them."""

    def __init__(self, run: Run, shared: int = 1, **biases: bool) -> None:
        super().__init__()
        self.run = run
        self.norm = nn.LayerNorm(D)
        self.q = nn.Linear(D, D)
        self.k, self.v = (nn.Linear(D, D // shared, bias=biases.get(name, False)) for name in "kv")
        self.out, self.sub = nn.Linear(D, D, bias=biases.get("out", True)), nn.LayerNorm(D)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
            self.norm.weight.copy_(torch.linspace(0.5, 1.5, D))
            self.norm.bias.copy_(torch.linspace(-0.2, 0.2, D))
        self.register_buffer("seen", torch.ones(T, T).bool())
        self.register_buffer("past", normal(2, T, D))
        self.double().eval()

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x.relu())
        return self.run(self, self.q(y), self.k(y), self.v(y))


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, E)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


attend = F.scaled_dot_product_attention


def attention(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
    return attend(heads(q), heads(k), heads(v), **settings)


def native(s: Block, q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
    return s.out(joined(attention(q, k, v, **settings)))


def written_out(between: Callable[[Tensor], Tensor], behind: Callable[[Tensor], Tensor] = lambda w: w) -> Run:
    """Attention by hand, with something between the scores and the softmax, or behind that."""

    def run(s: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = between(heads(q) @ heads(k).transpose(-1, -2)).softmax(-1)
        return s.out(joined(behind(weights) @ heads(v)))

    return run


def in_batches(s: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (heads(x).reshape(-1, T, E) for x in (q, k, v))
    scores = torch.baddbmm(torch.ones(1, 1, T).double(), q, k.transpose(1, 2), alpha=0.3)
    weights = scores.view(2, HEADS, T, T).softmax(-1).view(-1, T, T)
    return s.out(joined(torch.bmm(weights, v).view(2, HEADS, T, E)))


def at_once(s: Block, x: Tensor) -> Tensor:
    return torch.einsum("bhid,ohd->bio", x, s.out.weight.view(D, HEADS, E))


def all_at_once(scores: Tensor, v: Tensor, axis: int = -1) -> Tensor:
    """Weights of all queries in one row, which sums to their number."""
    return scores.softmax(axis).flatten(1)[:, None] @ v.repeat_interleave(T, 1)


def in_window(q: Tensor, k: Tensor) -> Tensor:
    """Scores of three neighbours, at the borders of two."""
    return F.conv1d(k.mT, q[0, :3].mT.unsqueeze(0), padding=1)


def by_einsum(s: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.view(2, T, HEADS, E) for x in (q, k, v))
    weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
    return s.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


def grouped(s: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return native(s, q, k, v, enable_gqa=True)


def repeated(s: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (heads(x).repeat_interleave(2, 1) for x in (k, v))
    return s.out(joined(attend(heads(q), k, v)))


def expanded(s: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (heads(x)[:, :, None].expand(-1, -1, 2, -1, -1).reshape(2, HEADS, T, E) for x in (k, v))
    return s.out(joined((heads(q) @ k.mT).softmax(-1) @ v))


HIDDEN = torch.ones(T, T).tril().bool()
LOWEST = torch.finfo(torch.float64).min
GONE: dict[str, tuple[Run, int]] = {
    "native": (native, 1),
    "causal": (lambda s, q, k, v: native(s, q, k.mT.contiguous().mT, v, is_causal=True), 1),
    "scaled": (lambda *a: native(*a, scale=0.3), 1),
    "of shared heads": (grouped, 2),
    "of repeated heads": (repeated, 2),
    "of expanded heads": (expanded, 2),
    "of one head": (lambda s, q, k, v: s.out(attend(q, k, v)), 1),
    "of one sample": (lambda s, q, k, v: native(s, q[:1], k[1][None], v[1][None]), 1),
    "by hand": (written_out(lambda a: a / E**0.5), 1),
    "with what is added": (written_out(lambda a: a * 0.3 + torch.arange(T)), 1),
    "hidden by a sum": (written_out(lambda a: a + torch.full((T, T), -math.inf).triu(1)), 1),
    "hidden by a fill": (written_out(lambda a: a.masked_fill(~HIDDEN, -math.inf)), 1),
    "hidden by a choice": (
        written_out(lambda a: torch.where(HIDDEN, a, torch.full([], LOWEST, dtype=a.dtype))),
        1,
    ),
    "by queries": (written_out(lambda a: a * torch.arange(1.0, T + 1)[:, None]), 1),
    "in batches": (in_batches, 1),
    "by einsum": (by_einsum, 1),
}
#: What stays: the bias of the keys, of the values, or both, and the code of the reason.
STAYS: dict[str, tuple[str, str, Run]] = {
    "a mask of unknown rows": ("v", "masked_rows", lambda s, *a: native(s, *a, attn_mask=s.seen)),
    "dropped weights": ("v", "masked_rows", lambda s, *a: native(s, *a, dropout_p=0.1)),
    "keys are returned": ("k", "raw_reader", lambda s, q, k, v: (native(s, q, k, v), heads(k))),
    "values are returned": ("v", "raw_reader", lambda s, q, k, v: (native(s, q, k, v), heads(v))),
    "keys turn": ("k", "", lambda s, q, k, v: native(s, q, k * torch.arange(T)[:, None], v)),
    "others come first": ("kv", "", lambda s, q, *kv: native(s, q, *(torch.cat([s.past, x], 1) for x in kv))),
    "a norm of keys": ("k", "", lambda s, q, k, v: native(s, q, s.sub(k), v)),
    "a norm behind": ("v", "raw_reader", lambda s, *a: s.out(s.sub(joined(attention(*a))))),
    "soft caps": ("k", "raw_reader", written_out(lambda a: a.tanh())),
    "by keys": ("k", "raw_reader", written_out(lambda a: a * torch.arange(1.0, T + 1))),
    "divided": ("k", "raw_reader", written_out(lambda a: torch.arange(1.0, T + 1)[:, None] / a)),
    "squared": ("k", "raw_reader", written_out(lambda a: a * a)),
    "hidden by little": ("k", "raw_reader", written_out(lambda a: a.masked_fill(~HIDDEN, -5.0))),
    "hidden by themselves": ("k", "raw_reader", written_out(lambda a: a.masked_fill(a > 1e3, -math.inf))),
    "a sink": ("kv", "raw_reader", written_out(lambda a: F.pad(a, (1, 0)), lambda w: w[..., 1:])),
    "over queries": ("kv", "raw_reader", written_out(lambda a: a.mT, lambda w: w.mT)),
    "hidden late": ("v", "raw_reader", written_out(lambda a: a, lambda w: w.masked_fill(~HIDDEN, 0.0))),
    "queries are keys": ("k", "", lambda s, q, k, v: native(s, k, k, v) + q),
    "no softmax": ("kv", "raw_reader", lambda s, q, k, v: s.out(joined(heads(q) @ (heads(k).mT @ heads(v))))),
    "over channels": ("kv", "raw_reader", lambda s, q, k, v: s.out(attend(q.mT, k.mT, v.mT).mT)),
    "channels by hand": ("kv", "raw_reader", lambda s, q, k, v: s.out(((q.mT @ k).softmax(-1) @ v.mT).mT)),
    "no keys": ("v", "masked_rows", lambda s, q, k, v: native(s, q, k[:, :0], v[:, :0])),
    "none by hand": ("v", "raw_reader", lambda s, q, k, v: s.out((q @ k[:, :0].mT).softmax(-1) @ v[:, :0])),
    "by themselves": (
        "kv",
        "raw_reader",
        lambda s, q, k, v: s.out(torch.einsum("bid,bjd->bij", k, k).softmax(1) @ v + q),
    ),
    "three factors": (
        "kv",
        "",
        lambda s, q, k, v: s.out(torch.einsum("bid,bjd,bje->bie", q, k, v)),
    ),
    "added up": (
        "v",
        "raw_reader",
        lambda s, q, k, v: s.out(torch.baddbmm(q, (q @ k.mT).softmax(-1), v, alpha=2.0)),
    ),
    "a window": ("k", "", lambda s, q, k, v: s.out(in_window(q, k).softmax(-1) @ v)),
    "no attention": ("v", "", lambda s, q, k, v: joined(attention(q, k, q)) + s.out(v)),
    "two axes at once": ("v", "raw_reader", lambda s, *a: at_once(s, attention(*a)) + s.out(a[0])),
    "summed channels": (
        "v",
        "raw_reader",
        lambda s, q, k, v: s.out(q + torch.einsum("bij,bjd->bi", (q @ k.mT).softmax(-1), v)[..., None]),
    ),
    "summed alone": (
        "v",
        "raw_reader",
        lambda s, q, k, v: s.out(torch.einsum("bi,bkd->bid", (q @ k.mT).softmax(-1)[..., 0], v)),
    ),
    "summed twice": (
        "v",
        "raw_reader",
        lambda s, q, k, v: s.out(torch.einsum("bhij,bjd->bid", (heads(q) @ heads(k).mT).softmax(-1), v)),
    ),
    "no channels": ("k", "", lambda s, q, k, v: native(s, q, torch.cat([k, k[..., D:]], -1), v)),
    "every other channel": ("k", "", lambda s, q, k, v: s.out(attend(q[..., ::2], k[..., ::2], v))),
    "joined weights": ("v", "raw_reader", lambda s, q, k, v: s.out(all_at_once(q @ k.mT, v)) + q),
    "joined otherwise": ("kv", "raw_reader", lambda s, q, k, v: s.out(all_at_once(q @ k.mT, v, 1)) + q),
    "another product": ("v", "raw_reader", lambda s, *a: s.out(joined(attention(*a) @ s.past[0, :E, :E]))),
}


class Several(nn.Module):
    """Blocks side by side, so that they are captured at once."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.eval()

    def forward(self, x: Tensor) -> list[Any]:
        return [block(x) for block in self.blocks]


@dataclass(frozen=True)
class Outcome:
    """What a block gives, what it did, and which of its projections have a bias in the end."""

    found: list[Tensor]
    wanted: list[Tensor]
    site: normfuse.report.Site
    biases: str


def outcomes(
    blocks: dict[str, Block], x: Tensor = X, dtype: torch.dtype = torch.float64
) -> dict[str, Outcome]:
    model = Several(list(blocks.values())).to(dtype)
    torch.manual_seed(3)
    wanted = model(x)
    made = normfuse.rewrite(model, (x,), verify="off")
    torch.manual_seed(3)
    found = made.module()(x)
    nodes = [n for n in made.program.graph.nodes if n.target is aten.linear.default]
    has = ["" if n.args[2:] in ((), (None,)) else "qkvo"[i % 4] for i, n in enumerate(nodes)]
    assert len(nodes) == 4 * len(blocks)
    sites = [site for site in made.report.sites if site.module.endswith("norm")]
    return {
        name: Outcome(
            tree_leaves(found[i]), tree_leaves(wanted[i]), sites[i], "".join(has[4 * i : 4 * i + 4])
        )
        for i, name in enumerate(blocks)
    }


@cache
def gone() -> dict[str, Outcome]:
    return outcomes({name: Block(run, shared) for name, (run, shared) in GONE.items()})


@cache
def stays() -> dict[str, Outcome]:
    return outcomes({name: Block(run) for name, (_, _, run) in STAYS.items()})


def reason(site: normfuse.report.Site) -> str:
    return site.refusals["carry_shift"].code if "carry_shift" in site.refusals else ""


@pytest.mark.parametrize("name", GONE)
def test_keys_and_values_need_no_bias(name: str) -> None:
    outcome = gone()[name]
    assert distance(outcome.found, outcome.wanted) <= EXACT
    assert outcome.biases == "qo"
    assert outcome.site.rules == ["fold_scale", "carry_shift"]
    assert reason(outcome.site) == ""


@pytest.mark.parametrize("name", STAYS)
def test_what_may_be_noticed_stays(name: str) -> None:
    outcome, (kept, code, _) = stays()[name], STAYS[name]
    assert distance(outcome.found, outcome.wanted) <= EXACT
    assert "".join(one for one in "kv" if one in outcome.biases) == kept
    assert reason(outcome.site) == code


def biases(made: normfuse.Rewritten) -> str:
    """The projections of one block that have a bias in the end."""
    nodes = [n for n in made.program.graph.nodes if n.target is aten.linear.default]
    return "".join(name for n, name in zip(nodes, "qkvo", strict=True) if n.args[2:] not in ((), (None,)))


def test_it_is_said_that_keys_are_returned() -> None:
    assert "is returned" in stays()["keys are returned"].site.refusals["carry_shift"].message


GIVEN = {"values": {"v": True}, "nothing behind": {"out": False}, "both": {"k": True, "v": True}}
LEFT = {"values": ("qvo", ""), "nothing behind": ("qv", "does_not_pay"), "both": ("qkvo", "")}


def test_a_bias_is_moved_where_that_saves_one() -> None:
    found = outcomes({name: Block(native, **biases) for name, biases in GIVEN.items()})
    assert all(distance(one.found, one.wanted) <= EXACT for one in found.values())
    assert {name: (one.biases, reason(one.site)) for name, one in found.items()} == LEFT


class Packed(Block):
    """Keys and values of one projection, taken apart by ``cut``."""

    def __init__(self, cut: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__(native)
        self.cut = cut
        self.k = nn.Linear(D, 2 * D, bias=False).double()

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x.relu())
        return native(self, self.q(y), *self.cut(self.k(y)))


CUTS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "chunk": lambda x: x.chunk(2, -1),
    "split": lambda x: x.split([D, D], -1),
    "slice": lambda x: (x[..., :D], x[..., D:]),
    "unbind": lambda x: x.unflatten(-1, (2, D)).unbind(2),
    "select": lambda x: (lambda y: (y[0], y[1]))(x.unflatten(-1, (2, D)).permute(2, 0, 1, 3)),
    "in turns": lambda x: x.unflatten(-1, (D, 2)).unbind(-1),
    "first tokens": lambda x: tuple(y[:, :3] for y in x.chunk(2, -1)),
}


def test_keys_and_values_of_one_projection() -> None:
    model = Several([Packed(cut) for cut in CUTS.values()])
    made = normfuse.rewrite(copy.deepcopy(model), (X,), verify="off")
    pairs = zip(CUTS, made.module()(X), model(X), strict=True)
    assert {name: distance([a], [b]) <= EXACT for name, a, b in pairs} == dict.fromkeys(CUTS, True)
    nodes = [n for n in made.program.graph.nodes if n.target is aten.linear.default]
    assert [n.args[2:] in ((), (None,)) for n in nodes] == [False, True, False] * len(CUTS)


class TwoNorms(Block):
    """Values that one projection makes of two norms: it takes the shifts of both."""

    def __init__(self) -> None:
        super().__init__(native)
        self.v = nn.Linear(2 * D, D, bias=False).double()

    def forward(self, x: Tensor) -> Any:
        y, z = self.norm(x.relu()), self.norm(x.sin())
        return native(self, self.q(y), self.k(y), self.v(torch.cat([y, z], -1)))


def test_a_bias_that_two_norms_gave_stays() -> None:
    model = TwoNorms()
    made = normfuse.rewrite(copy.deepcopy(model), (X,), verify="off")
    assert distance(evaluate(made.module(), (X,)), evaluate(model, (X,))) <= EXACT
    assert biases(made) == "qvo"
    assert ["carry_shift" in site.rules for site in made.report.sites] == [True, False]


def test_keys_keep_the_bias_that_they_had() -> None:
    model = Block(native, k=True)
    made = normfuse.rewrite(copy.deepcopy(model), (X,), verify="off")
    _, keys, *_ = (n for n in made.program.graph.nodes if n.target is aten.linear.default)
    held = {one.arg.name: one.target for one in made.program.graph_signature.input_specs}
    assert torch.equal(made.program.state_dict[held[keys.args[2].name]], model.k.bias)


def test_a_cache_that_is_written_to() -> None:
    def run(s: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache = torch.zeros_like(k)
        cache.copy_(k)
        k.add_(1.0)
        return native(s, q, k, cache)

    model = Block(run)
    made = normfuse.rewrite(copy.deepcopy(model), (X,), verify="off")
    assert distance(evaluate(made.module(), (X,)), evaluate(model, (X,))) <= EXACT


def test_sizes_may_be_open() -> None:
    model, dims = Block(native), {0: torch.export.Dim("b"), 1: torch.export.Dim("t")}
    made = normfuse.rewrite(copy.deepcopy(model), (X,), dynamic_shapes=(dims,), verify="off")
    assert biases(made) == "qo"
    other = normal(3, 7, D)
    assert distance(evaluate(made.module(), (other,)), evaluate(model, (other,))) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_verified_in_narrow_dtypes(dtype: torch.dtype) -> None:
    model = Block(native).to(dtype)
    made = normfuse.rewrite(model, (X.to(dtype),), verify="sites")
    assert made.report.sites[0].rules == ["fold_scale", "carry_shift"]


def test_casts_are_passed_that_round_nothing() -> None:
    found = outcomes(
        {
            "wide": Block(lambda s, q, k, v: s.out(attend(q.double(), k.double(), v.double()).float())),
            "scores": Block(lambda s, q, k, v: s.out((q @ k.mT).double().softmax(-1).float() @ v)),
            "narrow": Block(lambda s, q, k, v: s.out(attend(q, k.bfloat16().float(), v.bfloat16().float()))),
            "narrow scores": Block(lambda s, q, k, v: s.out((q @ k.mT).bfloat16().softmax(-1).float() @ v)),
        },
        X.float(),
        dtype=torch.float32,
    )
    assert [one.biases for one in found.values()] == ["qvo", "qo", "qkvo", "qko"]


def test_values_in_float16_keep_their_bias() -> None:
    made = normfuse.rewrite(Block(native).half(), (X.half(),), verify="off")
    assert biases(made) == "qkvo"


def test_the_rule_can_be_left_out() -> None:
    made = normfuse.rewrite(Block(native), (X,), skip=["carry_shift"], verify="off")
    assert biases(made) == "qkvo"
