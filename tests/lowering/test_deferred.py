"""The factor of a norm behind the products that read it: for which norms, and as the same function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfuse
from normfuse.lowering import deferred
from normfuse.lowering.choose import lower
from normfuse.options import Options
from normfuse.passes.work import Work
from tests.patterns.capturing import lifted

WIDTH = 8


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (WIDTH,), eps=1e-6)


def lowered(function: Callable[..., Tensor], *inputs: Tensor) -> Work:
    work = lifted(function, inputs or (torch.randn(3, WIDTH), torch.randn(5, WIDTH), torch.randn(5)))
    lower(work.program, work.sites, Options(lower="deferred"))
    work.program.gm.graph.lint()
    return work


def outside(
    function: Callable[..., Tensor], dtype: torch.dtype = torch.float64
) -> tuple[Work, Tensor, Tensor]:
    """Lowered, its result, and the one that the function itself has."""
    inputs = [torch.randn(2, 3, WIDTH), torch.randn(5, WIDTH), torch.randn(5)]
    inputs = [one.to(dtype) for one in inputs]
    work = lowered(function, *inputs)
    return work, work.program.gm(*inputs), function(*inputs)


FORMS = {
    "linear": lambda x, w, b: F.linear(norm(x), w, b),
    "without a bias": lambda x, w, b: F.linear(norm(x), w) + b,
    "several": lambda x, w, b: F.linear(norm(x), w, b) + torch.matmul(norm(x), w.t()),
    "addmm": lambda x, w, b: torch.addmm(b, norm(x).view(-1, WIDTH), w.t()).view(2, 3, 5),
    "mm": lambda x, w, b: torch.mm(norm(x).reshape(6, WIDTH), w.t()),
    "last row": lambda x, w, b: F.linear(norm(x)[:, -1:], w, b) + F.linear(norm(x)[:, 0].clone(), w)[:, None],
    "view of a norm of strided rows": lambda x, w, b: F.linear(norm(x[:, :2]).view(-1, WIDTH), w, b),
    "one norm, two views": lambda x, w, b: (lambda y: F.linear(y[1], w) + F.linear(y.view(6, WIDTH)[:3], w))(
        norm(x)
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_products_read_what_the_norm_reads(name: str) -> None:
    work, found, wanted = outside(FORMS[name])
    assert {site.lowering for site in work.report.sites} == {"deferred"}
    # Eight products and a factor, a handful of roundings of float64.
    assert float((found - wanted).norm() / wanted.norm()) < 32 * 2**-53
    targets = [str(n.target) for n in work.program.gm.graph.nodes]
    assert targets.index("aten.rsqrt.default") < len(targets)
    for node in work.program.gm.graph.nodes:
        if node.target in (torch.ops.aten.linear.default, torch.ops.aten.mm.default):
            reached, stack = set(), list(node.all_input_nodes)
            while stack:
                one = stack.pop()
                reached.add(str(one.target))
                stack += one.all_input_nodes
            assert "aten.rsqrt.default" not in reached


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, w, b: F.linear(norm(x), w) + norm(x).sum(), "sum reads the rms_norm"),
        (lambda x, w, b: norm(x) @ w.t() + norm(x).tanh().sum(), "that is no product with a matrix"),
        (lambda x, w, b: norm(x), "the output reads"),
        (lambda x, w, b: F.linear(F.layer_norm(x, (WIDTH,)), w), "a layer_norm of this form is no factor"),
        (lambda x, w, b: F.linear(F.rms_norm(x, (WIDTH,), w[0], 1e-6), w), "the weight or bias of"),
        (lambda x, w, b: F.linear(norm(x).t().contiguous().t(), w), "that is no product with a matrix"),
        (lambda x, w, b: norm(w) @ norm(x).t(), "that is no product with a matrix"),
        (lambda x, w, b: torch.addmm(b, norm(x), w.t(), alpha=2), "that is no product with a matrix"),
        (lambda x, w, b: F.linear(F.rms_norm(x, (WIDTH,), eps=0.0), w), "no factor takes the eps"),
        (lambda x, w, b: F.linear(norm(x).double(), w.double()), "changes the dtype of its input"),
    ],
)
def test_others_stay(function: Callable[..., Tensor], reason: str) -> None:
    work = lowered(function)
    sites = [site.lowering for site in work.report.sites]
    assert any(reason in one and one.startswith("inductor: ") for one in sites), sites


def test_half_precision() -> None:
    """Products of float16 may be too large before they are scaled; bfloat16 has the range of float32."""
    function = FORMS["linear"]
    assert "float16 may not hold" in outside(function, torch.float16)[0].report.sites[0].lowering
    assert outside(function, torch.bfloat16)[0].report.sites[0].lowering == "deferred"


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.last = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.up, self.gate = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width, bias=False)
        self.down, self.head = nn.Linear(2 * width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return self.head(self.last(x + self.down(F.silu(self.gate(h)) * self.up(h))))


@pytest.mark.parametrize("verified", ["off", "thorough"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_models(dtype: torch.dtype, verified: str) -> None:
    torch.manual_seed(0)
    model, x = Block(16).to(dtype).eval(), torch.randn(4, 6, 16, dtype=dtype)
    options = {"normfuse.lower": "deferred", "normfuse.inner": "eager", "normfuse.verify": verified}
    fast = torch.compile(model, backend="normfuse", options=options)
    with torch.no_grad():
        result = normfuse.verify(model, fast, (x,))
    assert result.ok, str(result)
    sites = normfuse.last_report(fast).sites
    assert [site.lowering for site in sites] == ["deferred", "deferred"]
    assert [site.rules for site in sites] == [["fold_scale"], ["fold_scale"]]


def test_verification_judges_what_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor that is off by a thousandth is found, and Inductor runs the norm."""
    exact = deferred._factor

    def wrong(graph, spec, source):
        made = exact(graph, spec, source)
        return deferred.call(graph, torch.ops.aten.mul.Tensor, made, 1.001)

    monkeypatch.setattr(deferred, "_factor", wrong)
    torch.manual_seed(0)
    model, x = Block(16).eval(), torch.randn(4, 6, 16)
    options = {"normfuse.lower": "deferred", "normfuse.inner": "eager", "normfuse.verify": "sites"}
    fast = torch.compile(model, backend="normfuse", options=options)
    with torch.no_grad():
        assert normfuse.verify(model, fast, (x,)).ok
    sites = normfuse.last_report(fast).sites
    assert all(site.lowering.startswith("inductor: on ") for site in sites), [s.lowering for s in sites]
    assert all(site.rules == ["fold_scale"] for site in sites)
    assert all("lower" in site.refusals for site in sites)


def test_what_is_written_to_in_between_stays() -> None:
    """The product would read the new values."""

    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.RMSNorm(16, eps=1e-6), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, h = self.norm(x), x * 2
            z = self.norm(h)
            x.add_(1.0)
            h.add_(1.0)
            return self.linear(y) + self.linear(z), h

    model, x = Writing().eval(), torch.randn(3, 16)
    options = {"normfuse.lower": "deferred", "normfuse.inner": "eager"}
    fast = torch.compile(model, backend="normfuse", options=options)
    with torch.no_grad():
        found, wanted = fast(x.clone()), model(x.clone())
    assert normfuse.last_report(fast).sites[0].lowering == "inductor"
    # Two sums of sixteen products of float32.
    assert all(
        float((a - b).abs().max()) < 64 * 2**-24 * float(b.abs().max())
        for a, b in zip(found, wanted, strict=True)
    )


def _norm_alone(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
    with torch.no_grad():
        y = norm(x)
    return F.linear(y, w)


def _norm_of_a_stream(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
    h = x + r
    with torch.no_grad():
        y = norm(h)
    return F.linear(y, w).sum(-1, keepdim=True) + h


def _product_alone(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
    h = x + r
    y = norm(h)
    with torch.no_grad():
        z = F.linear(y, w)
    return z.sum(-1, keepdim=True) + h


def _all_of_it(x: Tensor, r: Tensor, w: Tensor) -> Tensor:
    with torch.no_grad():
        z = F.linear(norm(x + r), w)
    return z.sum(-1, keepdim=True) + x * w.sum()


@pytest.mark.parametrize("function", [_norm_alone, _norm_of_a_stream, _product_alone, _all_of_it])
def test_gradients_are_those_of_the_model_where_they_are_switched_off(
    function: Callable[..., Tensor],
) -> None:
    shapes = ((3, WIDTH), (3, WIDTH), (5, WIDTH))
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    options = {"normfuse.lower": "deferred", "normfuse.inner": "eager"}
    fast = torch.compile(function, backend="normfuse", options=options)
    found, wanted = (
        torch.autograd.grad(one(*leaves).sum(), leaves, allow_unused=True) for one in (fast, function)
    )
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or float((one - other).abs().max()) < 1e-12
