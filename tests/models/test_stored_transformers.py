"""Transformers with running statistics: in evaluation nothing of their norms is left where algebra allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfuse
from normfuse.nn import BatchNorm, PowerNorm, RepBatchNorm, UnifiedNorm
from normfuse.verify.judge import judge
from tests.passes.building import distance

WIDTH = 12
#: Three blocks of sums of at most 48 products in float64, 1e4 units of 1.1e-16.
EXACT = 1e-12

Norm = Callable[[int], nn.Module]


class Transposed(nn.Module):
    """PyTorch's batch norm, which has its channels first; RepBN's skip stands outside of the transposes."""

    def __init__(self, width: int, skips: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.alpha = nn.Parameter(torch.rand(1)) if skips else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return y if self.alpha is None else y + self.alpha * x


class Published(nn.Module):
    """A unified norm in evaluation as it is published: channels first, made contiguous before and after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        y = x.clone().permute(0, 2, 1).contiguous().reshape(b, c, n).unsqueeze(-1)
        y = y / torch.sqrt(self.running_var.view(1, c, 1, 1) + 1e-5)
        y = self.weight.view(1, c, 1, 1) * y + self.bias.view(1, c, 1, 1)
        return y.reshape(b, c, n).permute(0, 2, 1).contiguous()


class Transformer(nn.Module):
    """Three pre-norm blocks, a last norm and a head; ``norm`` makes a norm, or nothing."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.norms = nn.ModuleList([norm(WIDTH) for _ in range(7)])
        self.qkv = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(3)])
        self.out = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
        self.up = nn.ModuleList([nn.Linear(WIDTH, 48) for _ in range(3)])
        self.down = nn.ModuleList([nn.Linear(48, WIDTH) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for i in range(3):
            q, k, v = self.qkv[i](self.norms[2 * i](x)).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            x = x + self.out[i](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = x + self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return self.head(self.norms[6](x))


class PostNorm(Transformer):
    """The same with the norms behind the sums."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[6](self.first(x))
        for i in range(3):
            q, k, v = self.qkv[i](x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = self.norms[2 * i](x + self.out[i](attended))
            x = self.norms[2 * i + 1](x + self.down[i](F.gelu(self.up[i](x))))
        return self.head(x)


def trained(norm: Norm, make: Callable[[Norm], nn.Module] = Transformer) -> nn.Module:
    """As after training: statistics and affines are none of their initial values."""
    torch.manual_seed(0)
    model = make(norm).double()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point() and value.dim() < 2:
                value.uniform_(0.5, 1.5)
    return model.eval()


def operators(program: torch.export.ExportedProgram) -> Counter[str]:
    return Counter(str(n.target) for n in program.graph.nodes if n.op == "call_function")


NORMS: dict[str, tuple[Norm, str]] = {
    "UnifiedNorm": (UnifiedNorm, "unified_norm"),
    "UnifiedNorm, published": (Published, "unified_norm"),
    "RepBatchNorm": (RepBatchNorm, "rep_batch_norm"),
    "RepBN outside": (lambda width: Transposed(width, skips=True), "rep_batch_norm"),
    "BatchNorm": (BatchNorm, "batch_norm"),
    "BatchNorm1d": (lambda width: Transposed(width, skips=False), "batch_norm"),
}


@pytest.mark.parametrize("make", [Transformer, PostNorm])
@pytest.mark.parametrize("name", NORMS)
def test_nothing_is_left_of_the_norms(name: str, make: Callable[[Norm], nn.Module]) -> None:
    norm, kind = NORMS[name]
    model, x = trained(norm, make), torch.randn(2, 7, 5, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,))
    assert made.report.found == {kind: 7}
    assert made.report.after == {}
    assert distance(made.module()(x), model(x)) <= EXACT
    bare = torch.export.export(trained(lambda width: nn.Identity(), make), (x,))
    assert operators(made.program) == operators(bare)


def test_a_power_norm_keeps_its_roots_alone() -> None:
    model = trained(lambda width: PowerNorm(width, group_num=3))
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,))
    assert made.report.after == {"rms_norm": 7}
    assert distance(made.module()(x), model(x)) <= EXACT
    bare = operators(torch.export.export(trained(lambda width: nn.Identity()), (x,)))
    left = operators(made.program) - bare
    assert not [name for name in left if "permute" in name or "transpose" in name or "clone" in name]
    # A grouped root is at most a split, a square, a mean, eps, a root, a quotient and the way back.
    assert sum(left.values()) <= 7 * 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [UnifiedNorm, RepBatchNorm, BatchNorm])
def test_half_precision(norm: Norm, dtype: torch.dtype) -> None:
    """The layers compute in float32, and what folds is rounded once."""
    model, x = trained(norm).to(dtype), torch.randn(2, 7, 5, dtype=dtype)
    made = normfuse.rewrite(model, (x,))
    assert made.report.after == {}
    assert normfuse.verify(model, made, (x,)).ok


class Separate(Transformer):
    """Query, key and value have weights of their own, for each of which autocast casts anew."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for i in range(3):
            y = self.norms[2 * i](x)
            q, k, v = (F.linear(y, w).unflatten(-1, (3, 4)).mT for w in self.qkv[i].weight.chunk(3))
            x = x + self.out[i](F.scaled_dot_product_attention(q, k, v).mT.flatten(2))
            x = x + self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return self.head(self.norms[6](x))


@pytest.mark.parametrize("make", [Transformer, Separate])
@pytest.mark.parametrize("name", NORMS)
def test_nothing_is_left_under_autocast(name: str, make: Callable[[Norm], nn.Module]) -> None:
    """Parameters of published norms take bfloat16 to float32, and the next product takes it back.

    A product rounds its input, its weight and its result. With the norm in the weight, the input has been
    rounded already, so there is one error less, and weight and bias are others, with errors of other sizes.
    What both may come to is the budget of every rewrite, and what chance may add to it for so many numbers.
    """
    norm, kind = NORMS[name]
    model, x = trained(norm, make).float(), torch.randn(64, 7, 5)
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, before = fast(x), model(x)
    report = normfuse.last_report(fast)
    assert (report.found, report.after) == ({kind: 7}, {})
    exact = model.double()(x.double())
    verdict = judge("", before, found, exact)
    assert verdict.judged
    assert verdict.ok, verdict


@pytest.mark.parametrize(
    ("name", "stays"),
    [("RepBN outside", 7), ("UnifiedNorm, published", 7), ("RepBatchNorm", 0), ("UnifiedNorm", 0)],
)
def test_under_autocast_a_result_that_is_wider_than_what_is_read_stays_in_a_sum(
    name: str, stays: int
) -> None:
    """Weights write half precision, and the sum has the result in float32; our layers keep the dtype."""
    norm, kind = NORMS[name]
    model, x = trained(norm, PostNorm).float(), torch.randn(64, 7, 5)
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, before = fast(x), model(x)
    report = normfuse.last_report(fast)
    assert report.after == ({kind: stays} if stays else {})
    reasons = {site.refusal.code for site in report.sites if site.refusal is not None}
    assert reasons == ({"dtype_changes", "raw_reader"} if stays else set())
    assert all(
        "round" in s.refusal.message for s in report.sites if s.refusal and s.refusal.code != "dtype_changes"
    )
    verdict = judge("", before, found, model.double()(x.double()))
    assert verdict.judged
    assert verdict.ok, verdict
