"""Norms with stored statistics in many spellings: each is found by its name, and nothing is left of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

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
    assert operators(made.program) == operators(torch.export.export(Residual(nn.Identity()).double(), (x,)))


#: What looks like one of them and is another function: it may be a norm with more behind it, or none.
OTHERS: dict[str, Spelling] = {
    "eps outside": lambda n, x: x / (n.var.sqrt() + EPS) * n.weight,
    "mean less values": lambda n, x: n.bias - (n.mean - x) * n.rstd,
    "mean of another scale": lambda n, x: x * (n.weight * n.rstd) - n.mean * n.rstd,
    "shift of another scale": lambda n, x: x * (n.weight * n.rstd) + (n.bias - n.mean * n.rstd),
    "mean added": lambda n, x: x * n.rstd + n.mean * n.rstd,
    "scale less values": lambda n, x: n.mean * n.rstd - x * n.rstd,
    "weights first and last": lambda n, x: n.weight * x / n.std * n.bias + n.mean,
    "two roots": lambda n, x: (x * n.rstd) / n.std,
    "half of a product": lambda n, x: torch.addcmul(n.bias, x, n.weight * n.rstd, value=0.5),
    "skip less": lambda n, x: x * (n.weight * n.rstd - n.alpha) + n.bias,
    "skip twice": lambda n, x: x * (n.rstd + n.alpha + n.weight) - n.mean * n.rstd,
    "skip of the norm": lambda n, x: (y := n.native(x.mT).mT) + n.alpha * y,
    "skip of more": lambda n, x: torch.addcmul(n.native(x.mT).mT, x, n.alpha, value=0.5),
    "skip of other views": lambda n, x: (n.native(x.mT) + n.alpha * x.reshape(2, C, 5)).mT,
    "affine behind a bias": lambda n, x: (x / n.std + n.bias) * n.weight + n.bias,
    "affine of tokens": lambda n, x: n.native(x.mT).mT * n.bias[:5, None] + n.weight,
    "affine behind a skip": lambda n, x: (n.native(x.mT) + n.alpha * x.mT).mT * n.weight + n.bias,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_stay_what_they_are(name: str) -> None:
    model, made, x = rewritten(OTHERS[name])
    assert distance(made.module()(x), model(x)) <= EXACT


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
