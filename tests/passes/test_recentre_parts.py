"""Norms of queries and keys, whose values are some of the channels that one weight writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import normfuse

B, T, H, D = 2, 5, 3, 4
Values = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Attention(nn.Module):
    """Attention between norms of queries and keys; ``take`` says how they come from the projection."""

    def __init__(self, take: Callable[[torch.Tensor], Values], width: int = D) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.take, self.project, self.out = take, nn.Linear(6, 3 * H * D), nn.Linear(H * D, 6)
        self.q_norm, self.k_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        for parameter in self.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.take(self.project(x))
        weight = (self.q_norm(q) @ self.k_norm(k).mT).softmax(-1)
        result: torch.Tensor = self.out((weight @ v).flatten(-2) if v.dim() == 4 else weight @ v)
        return result


def in_each_head(f: torch.Tensor) -> Values:
    f = f.view(B, T, H, 3, D)
    return f[..., 0, :], f[..., 1, :], f[..., 2, :]


def in_front_of_the_heads(f: torch.Tensor) -> Values:
    q, k, v = f.reshape(B, T, 3, H, D).permute(2, 0, 1, 3, 4).unbind(0)
    return q, k, v


def split(f: torch.Tensor) -> Values:
    q, k, v = (part.reshape(B, T, H, D) for part in f.split(H * D, -1))
    return q, k, v


def without_heads(f: torch.Tensor) -> Values:
    q, k, v = f.chunk(3, -1)
    return q, k, v


def one_for_both(f: torch.Tensor) -> Values:
    q, _, v = split(f)
    return q, q, v


def overlapping(f: torch.Tensor) -> Values:
    q, k, v = f[..., : H * D], f[..., H * D - 1 : -H * D - 1], f[..., -H * D :]
    return q.reshape(B, T, H, D), k.reshape(B, T, H, D), v.reshape(B, T, H, D)


def read_again(f: torch.Tensor) -> Values:
    q, k, v = split(f)
    return q, k, v + f.mean()


@pytest.mark.parametrize(
    ("take", "width"),
    [
        (in_each_head, D), (in_front_of_the_heads, D), (split, D), (one_for_both, D),
        (without_heads, H * D),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_rows_of_queries_and_keys_are_centred(
    take: Callable[[torch.Tensor], Values], width: int, dtype: torch.dtype
) -> None:
    model, x = Attention(take, width).to(dtype).eval(), torch.randn(B, T, 6, dtype=dtype)
    made = normfuse.rewrite(model, (x,), verify="off")
    assert made.report.after == {"rms_norm": 2}
    assert made.report.centrings == 0
    assert normfuse.verify(model, made, (x,)).ok
    if dtype == torch.float64:
        torch.testing.assert_close(made.module()(x), model(x), rtol=1e-12, atol=1e-12)


def test_the_rows_of_values_stay() -> None:
    model = Attention(split).double().eval()
    made = normfuse.rewrite(model, (torch.randn(B, T, 6, dtype=torch.float64),), verify="off")
    rows = made.program.state_dict["project.weight"].view(3, H, D, 6)
    assert rows[:2].mean(2).abs().max() < 1e-15
    assert torch.equal(rows[2].flatten(0, 1), model.project.weight[-H * D :])


@pytest.mark.parametrize("take", [overlapping, read_again])
def test_channels_that_something_else_reads_stay(take: Callable[[torch.Tensor], Values]) -> None:
    model, x = Attention(take).eval(), torch.randn(B, T, 6)
    made = normfuse.rewrite(model, (x,), verify="off")
    assert made.report.after == {"layer_norm": 2}
    assert torch.equal(made.module()(x), model(x))


def test_in_training_gradients_are_those_of_the_model() -> None:
    model, x = Attention(in_each_head).double(), torch.randn(B, T, 6, dtype=torch.float64)
    options = {"normfuse.inner": "eager", "normfuse.policy": "convert", "normfuse.expect": {"rms_norm": 2}}
    compiled = torch.compile(model, backend="normfuse", options=options)
    wanted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    got = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
    for one, other in zip(wanted, got, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("target", ["rms_norm", "crms_norm"])
def test_parts_of_a_weight_are_mapped_behind_it(target: str) -> None:
    """Where norms of weights are left, what they read is a weight, and a part of one is no operator."""

    class OfWeights(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(5, 3 * D, dtype=torch.float64) + 2)
            self.one = torch.nn.LayerNorm(D, bias=False, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.table.unflatten(-1, (3, D)).unbind(-2)
            return self.one(q) + self.one(k) * v + x.sum()

    model, x = OfWeights().eval(), torch.randn(2, 3, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,), verify="off", skip=["fold_constants"], target=target)
    assert made.report.after == {target: 2}
    torch.testing.assert_close(made.module()(x), model(x), rtol=1e-12, atol=1e-12)


READ_AS = {
    "a row more": lambda part: part[None],
    "expanded": lambda part: part.unsqueeze(0).expand(2, -1, -1),
    "the last rows": lambda part: part[None, 1:],
    "transposed twice": lambda part: part.t().contiguous().t(),
    "as it is": lambda part: part,
}


@pytest.mark.parametrize("options", [{}, {"target": "crms_norm", "crms_basis": "orthonormal"}], ids=str)
@pytest.mark.parametrize("way", READ_AS)
def test_a_part_of_a_table_lies_otherwise_when_it_is_centred(way: str, options: dict[str, str]) -> None:
    """The part lies with gaps, the folded one without; what is recorded of its views follows."""

    class Positions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(6, 2 * D)
            self.inner, self.norm = torch.nn.Linear(D, D), torch.nn.LayerNorm(D)
            self.out = torch.nn.Linear(D, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            query, position = self.table.weight.split(D, 1)
            return self.out(self.norm(self.inner(x) + READ_AS[way](position))) + query.sum()

    rows = 5 if way == "the last rows" else 6
    model, x = Positions().double().eval(), torch.randn(2, rows, D, dtype=torch.float64)
    made = normfuse.rewrite(
        model, (x,), verify="off", **options
    )  # in strict mode, what is recorded is checked
    assert made.report.after == {options.get("target", "rms_norm"): 1}
    torch.testing.assert_close(made.module()(x), model(x), rtol=1e-12, atol=1e-12)
