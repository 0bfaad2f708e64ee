"""Norms with stored statistics in many spellings: each is found by its name, and nothing is left of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfuse
from tests.passes.building import distance

C, EPS = 6, 1e-3
#: Two products over at most 6 numbers in float64, and what is folded into them: far below this.
EXACT = 1e-13

Spelling = Callable[["Norm", Tensor], Tensor]


class Norm(nn.Module):
    """Parameters and statistics as after training, and a spelling."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling
        self.weight, self.bias = nn.Parameter(torch.rand(C) + 0.5), nn.Parameter(torch.randn(C))
        self.alpha = nn.Parameter(torch.rand(1))
        self.register_buffer("mean", torch.randn(C))
        self.register_buffer("var", torch.rand(C) + 0.5)
        self.register_buffer("eps", torch.full((C,), EPS))

    @property
    def scale(self) -> Tensor:
        return self.weight * self.rstd

    @property
    def std(self) -> Tensor:
        return torch.sqrt(self.var + EPS)

    @property
    def rstd(self) -> Tensor:
        return torch.rsqrt(self.var + EPS)

    def native(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.spelling(self, x)


class Residual(nn.Module):
    """The writer is read elsewhere, so only the reader behind the norm can take it, and only as a whole."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.write, self.read, self.norm = nn.Linear(3, C), nn.Linear(C, C), norm

    def forward(self, x: Tensor) -> Tensor:
        h = self.write(x)
        return h + self.read(self.norm(h))


def frozen(n: Norm, x: Tensor) -> Tensor:
    scale = n.weight * n.rstd
    return x * scale + (n.bias - n.mean * scale)


def frozen_in_two_steps(n: Norm, x: Tensor) -> Tensor:
    scale = n.weight * n.rstd
    return x * scale - n.mean * scale + n.bias


def added_at_once(n: Norm, x: Tensor) -> Tensor:
    scale = n.weight * n.rstd
    return torch.addcmul(n.bias - n.mean * scale, x, scale)


def in_place(n: Norm, x: Tensor) -> Tensor:
    y = x / n.std
    y *= n.weight
    y += n.bias
    return y


def repeated(n: Norm, x: Tensor) -> Tensor:
    return x * (n.weight / n.std)[None, None].expand_as(x) + n.bias.expand(x.shape)


def rep(n: Norm, x: Tensor) -> Tensor:
    scale = n.rstd * n.weight
    return x * (scale + n.alpha) + (-n.mean * scale + n.bias)


def rep_without_affine(n: Norm, x: Tensor) -> Tensor:
    rstd = n.rstd
    return x * (n.alpha + rstd) + -(n.mean * rstd)


def without_affine(n: Norm, x: Tensor) -> Tensor:
    rstd = n.rstd
    return x * rstd + -n.mean * rstd


def flat(n: Norm, x: Tensor) -> Tensor:
    y = F.batch_norm(x.flatten(0, 1), n.mean, n.var, eps=EPS).unflatten(0, x.shape[:2])
    return y * n.weight + n.bias


def batch_norm(n: Norm, x: Tensor) -> Tensor:
    return n.native(x.mT).mT


def shifted_twice(n: Norm, x: Tensor) -> Tensor:
    return torch.addcmul(torch.addcmul(n.bias, x, n.scale), n.mean, n.scale, value=-1)


FOUND: dict[str, dict[str, Spelling]] = {
    "unified_norm": {
        "weight first": lambda n, x: n.weight * x / n.std + n.bias,
        "weight first, by the root": lambda n, x: x * n.weight * n.rstd + n.bias,
        "inverse of the root": lambda n, x: x * (1 / n.std) * n.weight + n.bias,
        "scale": lambda n, x: x * (n.weight / n.std) + n.bias,
        "addcmul": lambda n, x: torch.addcmul(n.bias, x, n.weight * n.rstd),
        "addcmul of the root": lambda n, x: torch.addcmul(n.bias, n.weight * x, n.rstd),
        "addcdiv": lambda n, x: torch.addcdiv(n.bias, x * n.weight, n.std),
        "repeated": repeated,
        "in place": in_place,
        "root beside axes": lambda n, x: (x.mT / n.std[:, None] * n.weight[:, None] + n.bias[:, None]).mT,
        "in float64": lambda n, x: (x.double() / n.std * n.weight + n.bias).to(x),
        "einsum": lambda n, x: torch.einsum("btc,c->btc", x, n.scale) + n.bias,
        "einsum beside axes": lambda n, x: (torch.einsum("c,bct->bct", n.scale, x.mT) + n.bias[:, None]).mT,
        "einsum of an ellipsis": lambda n, x: torch.einsum("...c,c->...c", x, n.scale) + n.bias,
        "linear of a diagonal": lambda n, x: F.linear(x, torch.diag(n.scale), n.bias),
        "diagonal first": lambda n, x: (torch.diag(n.scale) @ x.mT).mT + n.bias,
        "less values": lambda n, x: n.bias - x * n.scale,
        "twice added": shifted_twice,
        "half of a product": lambda n, x: torch.addcmul(n.bias, x, n.scale, value=0.5),
        "half of a quotient": lambda n, x: torch.addcdiv(n.bias, x, n.std, value=0.5),
        "added to itself": lambda n, x: torch.addcmul(x, x, n.scale),
        "eps outside": lambda n, x: x / (n.var.sqrt() + EPS) * n.weight,
        "root of an inverse": lambda n, x: x * (1 / (n.var + EPS)).sqrt() + n.bias,
    },
    "batch_norm": {
        "weight first": lambda n, x: n.weight * (x - n.mean) / n.std + n.bias,
        "weight first, by the root": lambda n, x: n.weight * (x - n.mean) * n.rstd + n.bias,
        "frozen": frozen,
        "frozen in two steps": frozen_in_two_steps,
        "addcmul": added_at_once,
        "without affine": without_affine,
        "affine outside of moves": flat,
        "native": lambda n, x: torch.native_batch_norm(
            x.mT, n.weight, n.bias, n.mean, n.var, False, 0.1, EPS
        )[0].mT,
        "moveaxis": lambda n, x: torch.moveaxis(n.native(torch.moveaxis(x, -1, 1)), 1, -1),
        "lerp": lambda n, x: torch.lerp(n.mean, x, n.scale),
        "lerp without weight": lambda n, x: torch.lerp(n.mean.expand_as(x), x, n.rstd) * n.weight + n.bias,
        "diagonal": lambda n, x: (x - n.mean) @ torch.diag(n.scale) + n.bias,
        "identity": lambda n, x: (x - n.mean) @ (torch.eye(C, dtype=x.dtype) * n.scale) + n.bias,
        "eps in a tensor": lambda n, x: (x - n.mean) / torch.sqrt(n.eps + n.var) * n.weight + n.bias,
        "eps made": lambda n, x: (x - n.mean) * torch.rsqrt(n.var + torch.tensor(EPS)) * n.weight + n.bias,
        "variance bounded": lambda n, x: (x - n.mean) * n.var.clamp(min=EPS).rsqrt() * n.weight + n.bias,
        "less": lambda n, x: -0.5 * batch_norm(n, x),
        "an axis more": lambda n, x: n.native(x.swapaxes(1, 2)[..., None]).squeeze(3).swapdims(1, 2),
    },
    "rep_batch_norm": {
        "one scale": rep,
        "one scale without affine": rep_without_affine,
        "two permutes": lambda n, x: (
            n.native(x.permute(0, 2, 1)) + n.alpha * x.permute(0, 2, 1)
        ).permute(0, 2, 1),
        "addcmul": lambda n, x: torch.addcmul(n.native(x.mT).mT, x, n.alpha),
        "repeated": lambda n, x: n.native(x.mT).mT + n.alpha.expand(C) * x,
        "rows": lambda n, x: (n.native(x.view(-1, C)) + x.view(-1, C) * n.alpha).view(x.shape),
        "by hand": lambda n, x: n.weight * (x - n.mean) / n.std + n.bias + n.alpha * x,
        "one": lambda n, x: x + batch_norm(n, x),
        "a number": lambda n, x: x * 0.5 + batch_norm(n, x),
        "alpha": lambda n, x: torch.add(batch_norm(n, x), x, alpha=0.5),
        "less": lambda n, x: x / n.alpha - batch_norm(n, x),
        "shares": lambda n, x: (1 - n.alpha) * x + n.alpha * batch_norm(n, x),
        "lerp": lambda n, x: torch.lerp(x, batch_norm(n, x), 0.3),
        "lerp by a weight": lambda n, x: torch.lerp(batch_norm(n, x), x, n.alpha),
        "of the norm": lambda n, x: (y := batch_norm(n, x)) + n.alpha * y + x,
        "affine behind": lambda n, x: (batch_norm(n, x) + x) * n.weight + n.bias,
        "of a norm": lambda n, x: batch_norm(n, x) + x * n.scale,
        "einsum": lambda n, x: batch_norm(n, x) + torch.einsum("btc,c->btc", x, n.weight),
    },
}  # fmt: skip


def rewritten(spelling: Spelling) -> tuple[nn.Module, normfuse.Rewritten, Tensor]:
    torch.manual_seed(0)
    model, x = Residual(Norm(spelling)).double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    return model, normfuse.rewrite(model, (x,)), x


def operators(program: torch.export.ExportedProgram) -> Counter[str]:
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return Counter(name for name in names if "assert" not in name)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in FOUND for name in FOUND[kind]])
def test_nothing_is_left(kind: str, name: str) -> None:
    model, made, x = rewritten(FOUND[kind][name])
    assert made.report.found == {kind: 1}
    assert made.report.after == {}
    assert distance(made.module()(x), model(x)) <= EXACT
    assert operators(made.program) == operators_without_a_norm()


@cache
def operators_without_a_norm() -> Counter[str]:
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    return operators(torch.export.export(Residual(nn.Identity()).double(), (x,)))


#: What looks like one of them and is another function: it may be a norm with more behind it, or none.
OTHERS: dict[str, Spelling] = {
    "mean less values": lambda n, x: n.bias - (n.mean - x) * n.rstd,
    "mean of another scale": lambda n, x: x * (n.weight * n.rstd) - n.mean * n.rstd,
    "shift of another scale": lambda n, x: x * (n.weight * n.rstd) + (n.bias - n.mean * n.rstd),
    "mean added": lambda n, x: x * n.rstd + n.mean * n.rstd,
    "scale less values": lambda n, x: n.mean * n.rstd - x * n.rstd,
    "weights first and last": lambda n, x: n.weight * x / n.std * n.bias + n.mean,
    "two roots": lambda n, x: (x * n.rstd) / n.std,
    "skip less": lambda n, x: x * (n.weight * n.rstd - n.alpha) + n.bias,
    "skip twice": lambda n, x: x * (n.rstd + n.alpha + n.weight) - n.mean * n.rstd,
    "skip of the norm": lambda n, x: (y := n.native(x.mT).mT) + n.alpha * y,
    "skip of more": lambda n, x: torch.addcmul(n.native(x.mT).mT, x, n.alpha, value=0.5),
    "skip of other views": lambda n, x: (n.native(x.mT) + n.alpha * x.reshape(2, C, 5)).mT,
    "affine behind a bias": lambda n, x: (x / n.std + n.bias) * n.weight + n.bias,
    "affine of tokens": lambda n, x: n.native(x.mT).mT * n.bias[:5, None] + n.weight,
    "skip of tokens": lambda n, x: batch_norm(n, x) + x * n.bias[:5, None],
    "skip of a nonlinearity": lambda n, x: batch_norm(n, x) + x.relu(),
    "lerp of values": lambda n, x: torch.lerp(batch_norm(n, x), x, x),
    "lerp from tokens": lambda n, x: torch.lerp(n.mean[:5, None], x, n.scale),
    "einsum of tokens": lambda n, x: torch.einsum("btc,t->btc", x, n.scale[:5]) * n.scale,
    "einsum that turns": lambda n, x: torch.einsum("btc,c->bct", x, n.scale).mT,
    "einsum that sums": lambda n, x: torch.einsum("btc,c->bt", x, n.scale)[..., None] * n.scale,
    "diagonal beside": lambda n, x: x @ torch.diag(n.scale[1:], 1) + n.bias,
    "identity of less": lambda n, x: F.pad(x @ (torch.eye(C, 5, dtype=x.dtype) * n.scale[:5]), (0, 1)),
    "identity of a column": lambda n, x: x @ (torch.eye(C, dtype=x.dtype) * n.scale[:, None]) + n.bias,
    "affine behind a skip": lambda n, x: (n.native(x.mT) + n.alpha * x.mT).mT * n.weight + n.bias,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_stay_what_they_are(name: str) -> None:
    model, made, x = rewritten(OTHERS[name])
    assert distance(made.module()(x), model(x)) <= EXACT


@pytest.mark.parametrize("name", FOUND["rep_batch_norm"])
def test_what_stays_runs_as_it_was_spelled(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Tanh(), Norm(FOUND["rep_batch_norm"][name]), nn.Tanh()).eval()
    x = torch.randn(2, 5, C)
    made = normfuse.rewrite(model, (x,))
    assert made.report.after == {"rep_batch_norm": 1}
    assert torch.equal(made.module()(x), model(x))
    assert operators(made.program) <= operators(torch.export.export(model, (x,)))


@pytest.mark.parametrize("name", ["a number", "lerp by a weight", "affine behind"])
def test_weights_may_train_and_change(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, C), Norm(FOUND["rep_batch_norm"][name])).double().eval()
    fast, x = compiled_by_hand(model), torch.randn(2, 5, 3, dtype=torch.float64)
    for _ in range(2):
        model.zero_grad()
        fast(x).square().sum().backward()
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        model(x).square().sum().backward()
        wanted = [p.grad for p in model.parameters() if p.grad is not None]
        assert all((a - b).norm() <= EXACT * b.norm() for a, b in zip(found, wanted, strict=True))
        with torch.no_grad():
            wanted = model(x)
            assert (fast(x) - wanted).norm() <= EXACT * wanted.norm()
            for value in (*model.parameters(), model[1].mean):
                value.mul_(1.5)
    assert normfuse.last_report().after == {}


def compiled_by_hand(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend=normfuse.normfuse_backend, options={"normfuse.inner": "eager"})


class Viewed(nn.Module):
    """An RMSNorm, whose scale is made of a stored root, and views that another layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.write, self.read, self.norm = nn.Linear(3, C), nn.Linear(C, C), Norm(lambda n, x: x)

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(self.write(x), (C,), eps=EPS) * (self.norm.weight / self.norm.std) + self.norm.bias
        return self.read(y.view(2, 5, C).view(-1, C)).view(2, 5, C)


def test_what_a_norm_ahead_has_taken_is_no_norm_of_its_own() -> None:
    model, x = Viewed().double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,))
    assert made.report.found == {"rms_norm": 1}
    assert distance(made.module()(x), model(x)) <= EXACT
