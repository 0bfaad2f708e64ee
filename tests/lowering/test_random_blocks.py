"""Random blocks around norms of sums, whose norms are run in every way: the same function each time.

The kernels are played by their references, in float64.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="the kernels are written in Triton")

from normfuse.kernels import device
from normfuse.kernels.linear_operator import linear
from normfuse.kernels.operators import norm
from normfuse.kernels.reference import linear_reference, norm_reference
from normfuse.lowering import choose, kernel, product
from normfuse.lowering.choose import lower
from normfuse.lowering.deferred import DEFERRED
from normfuse.lowering.kernel import ADD_NORM, KERNEL
from normfuse.lowering.product import ADD_PRODUCT, PRODUCT
from normfuse.lowering.provider import Provider
from normfuse.options import Options
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.functionalize import functionalize
from normfuse.passes.legal_form import LegalForm
from normfuse.passes.lift import lift
from normfuse.passes.work import Work
from tests.patterns.capturing import program_of

WIDTH = 6
WAYS: dict[str, tuple[Provider, ...]] = {
    "kernels": (ADD_NORM, KERNEL),
    "products": (ADD_PRODUCT, PRODUCT),
    "operators": (DEFERRED,),
    "all": (ADD_PRODUCT, ADD_NORM, DEFERRED, KERNEL),
}
INPUTS = tuple(
    torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(place))
    for place, shape in enumerate([(2, 3, WIDTH)] * 3 + [(WIDTH, WIDTH)] * 3 + [(WIDTH,)] * 2)
)
BLOCKS = 25
#: Two roundings of each of some hundred values, one after the other, in rows that norms bring to size one.
BOUND = 200 * 2**-52


def block(choices: random.Random, *given: Tensor) -> Tensor:
    """Some values are added, normalized, multiplied and written to, as ``choices`` has it."""
    values, matrices, vectors = [g * 1 for g in given[:3]], list(given[3:6]), list(given[6:])
    for _ in range(choices.randint(3, 9)):
        STEPS[choices.choice(list(STEPS))](choices, values, matrices, vectors)
    return torch.stack([value.tanh() for value in values]).sum(0)


def _add(choices: random.Random, values: list[Tensor], *_: list[Tensor]) -> None:
    a, b = choices.sample(range(len(values)), 2)
    form = choices.randrange(6)
    if form == 0:
        values[a] = torch.add(values[a], values[b], alpha=2)
    elif form == 1:
        values[a].add_(values[b])
    elif form == 2:
        values[a] = values[a] + values[b][:, :1]
    else:
        values.append(values[a] + values[b])


def _normalize(
    choices: random.Random, values: list[Tensor], matrices: list[Tensor], vectors: list[Tensor]
) -> None:
    x = choices.choice(values[-2:])
    has_weight, is_layer_norm = choices.random() < 0.15, choices.random() < 0.1
    weight = choices.choice(vectors) if has_weight else None
    y = (
        F.layer_norm(x, (WIDTH,), weight, None, 1e-5)
        if is_layer_norm
        else F.rms_norm(x, (WIDTH,), weight, 1e-5)
    )
    found = [_read(choices, y, matrices, vectors) for _ in range(choices.randint(1, 3))]
    if choices.random() < 0.1:
        found.append(y)
    values.append(sum(found[1:], found[0]))


def _read(choices: random.Random, y: Tensor, matrices: list[Tensor], vectors: list[Tensor]) -> Tensor:
    matrix = choices.choice(matrices)
    if choices.random() < 0.25:
        matrix = matrix * choices.choice(vectors)
    bias = choices.choice([None, *vectors])
    form = choices.randrange(12)
    if form == 0:
        return F.linear(y.view(-1, WIDTH), matrix, bias).view(y.shape)
    if form == 1:
        return F.linear(y[:, -1:], matrix, bias) + y.new_zeros(y.shape)
    if form == 2:
        return y @ matrix
    return F.linear(y, matrix, bias)


def _write(choices: random.Random, values: list[Tensor], *_: list[Tensor]) -> None:
    choices.choice(values).mul_(0.5)


def _bend(choices: random.Random, values: list[Tensor], *_: list[Tensor]) -> None:
    values.append(choices.choice(values).sin())


STEPS: dict[str, Callable[..., None]] = {
    "add": _add, "again": _add, "norm": _normalize, "another": _normalize, "write": _write, "bend": _bend,
}  # fmt: skip


def _norm(x, weight, bias, residual, gate, kind, eps, offset, groups, gate_first, wants):
    y, total, rstd = norm_reference(x, weight, bias, residual, gate, kind, eps, offset, groups, gate_first)
    return y, total, None, rstd


def _linear(x, weight, bias, residual, eps):
    return (*linear_reference(x, weight, bias, residual, eps), None)


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_INTERPRETED", True)
    for module in (kernel, product):
        monkeypatch.setattr(module, "DTYPES", (torch.float64,))


def _checked(number: int) -> Counter[str]:
    """One block against itself as it was written; what ran its norms."""

    def function(*given: Tensor) -> Tensor:
        return block(random.Random(number), *given)

    work = Work(program_of(function, INPUTS, 5), Options(lower="deferred"))
    program = work.program
    functionalize(program.gm)
    canonicalize(program.gm)
    lift(work)
    work.lowered = lower(program, work.sites, work.options)
    program.gm.graph.eliminate_dead_code()
    LegalForm().stage("lower", work)
    ran = Counter(site.lowering.split(":")[0] for site in work.report.sites)
    for node in program.gm.graph.nodes:
        for operator, played, place in ((norm, _norm, 3), (linear, _linear, 3)):
            if node.target is operator._opoverload:
                node.target = played
                ran[played.__name__.strip("_") + " with sum" * (node.args[place] is not None)] += 1
    program.gm.recompile()
    own = [value.clone() for value in INPUTS]
    found, wanted = program.gm(*own), function(*(value.clone() for value in INPUTS))
    assert float((found - wanted).abs().max()) <= BOUND, f"block {number}"
    return ran


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("way", WAYS)
def test_random_blocks(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Counter[str]()
    monkeypatch.setattr(choose, "_WAYS", {"deferred": WAYS[way]})
    for number in range(BLOCKS):
        ran += _checked(number)
    wanted = {"kernels": {"norm", "norm with sum"}, "products": {"linear", "linear with sum"}}
    for name in wanted.get(way, ()):
        assert ran[name] >= BLOCKS // 20, ran
    assert way != "operators" or ran["deferred"] >= BLOCKS // 4
