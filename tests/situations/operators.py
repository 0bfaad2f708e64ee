"""Operators with graphs inside, and everything else that a graph may hold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops.scan import scan
from torch.nn.attention.flex_attention import flex_attention

from normfuse.report import Report
from tests.backends.networks import PreNorm, example, prenorm
from tests.passes.devices import CASES, rewritten, scaled_writer
from tests.situations.models import close, fast, outputs, pair, report, same_training
from tests.situations.registry import situation

OPERATORS = "Operators and inputs"
ALL = "works, 3 of 3 converted"


class Around(nn.Module):
    """A pre-norm network with ``change`` between the first norm and the first linear of each block."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.change = prenorm(), change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.embed(x)
        for block in self.inner.blocks:
            x = x + block.down(torch.relu(block.up(self.change(block.norm(x)))))
        return self.inner.head(self.inner.norm(x))


def _attended(x: torch.Tensor) -> torch.Tensor:
    heads = x.unflatten(-1, (2, 8)).transpose(1, 2)

    def score(value: Any, batch: Any, head: Any, query: Any, key: Any) -> Any:
        return value + (query - key)

    return flex_attention(heads, heads, heads, score_mod=score).transpose(1, 2).flatten(2)


@situation(OPERATORS, "`flex_attention` with a score function", ALL)
def flexible() -> Report:
    return outputs(Around(_attended).eval(), example())


def _branched(x: torch.Tensor) -> torch.Tensor:
    return torch.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (x,))


@situation(OPERATORS, "`torch.cond`", ALL)
def cond() -> Report:
    return outputs(Around(_branched).eval(), example())


def _scanned(x: torch.Tensor) -> torch.Tensor:
    def step(carry: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return carry * 0.5 + row, carry + row

    return scan(step, torch.zeros_like(x[:, 0]), x, dim=1)[1]


@situation(OPERATORS, "`scan`", ALL, slow=True)
def scanned() -> Report:
    return outputs(Around(lambda x: _scanned(x).transpose(0, 1).reshape(x.shape)).eval(), example())


class _Clipped(torch.autograd.Function):
    """The identity; its gradient is halved."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 0.5


@situation(OPERATORS, "`torch.autograd.Function`, in training", ALL)
def autograd_function() -> Report:
    return same_training(Around(lambda x: _Clipped.apply(x)).train(), example())


@torch.library.custom_op("normfuse_situations::shifted", mutates_args=())
def shifted(x: torch.Tensor, by: float) -> torch.Tensor:
    return x + by


@shifted.register_fake
def _(x: torch.Tensor, by: float) -> torch.Tensor:
    return torch.empty_like(x)


@situation(OPERATORS, "a custom operator beside the stream", ALL)
def custom_operator() -> Report:
    return outputs(Around(lambda x: shifted(x, 2.0)).eval(), example())


class Inside(nn.Module):
    """``change`` acts on the stream itself."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.change = prenorm(), change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.blocks[0](self.inner.embed(x))
        return self.inner.head(self.inner.norm(self.inner.blocks[1](self.change(x))))


@situation(OPERATORS, "a custom operator on the stream", "works, 2 of 3 converted; refused: `raw_reader`")
def custom_operator_on_the_stream() -> Report:
    return outputs(Inside(lambda x: shifted(x, 2.0)).eval(), example())


@situation(OPERATORS, "`torch.cond` on the stream", "works, 2 of 3 converted; refused: `raw_reader`")
def cond_on_the_stream() -> Report:
    return outputs(Inside(_branched).eval(), example())


def _autocast(model: nn.Module, run: Any, reference: Any, **region: Any) -> Report:
    """Both are run under autocast; ours must not be much further from float64 than the model's."""
    x, wide = example(dtype=torch.float32), copy.deepcopy(model).double()
    with torch.no_grad():
        exact = wide(x.double())
        with torch.autocast("cpu", dtype=torch.bfloat16, **region):
            found, wanted = run(x), reference(x)
    assert found.dtype == wanted.dtype
    ours, theirs = (float((y.double() - exact).norm()) for y in (found, wanted))
    assert ours <= 1.5 * (1 + 2 / exact.numel() ** 0.5) * theirs
    return report()


@situation(OPERATORS, "`torch.autocast` around the call", ALL)
def autocast_around() -> Report:
    model, reference = pair(prenorm(dtype=torch.float32))
    return _autocast(model, fast(model), reference)


class Autocast(nn.Module):
    """The blocks run under autocast, the rest does not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm(dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.embed(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for block in self.inner.blocks:
                x = block(x)
        return self.inner.head(self.inner.norm(x.float()))


@situation(OPERATORS, "`torch.autocast` inside of the model", ALL)
def autocast_inside() -> Report:
    model = Autocast()
    reference = copy.deepcopy(model)
    wide = copy.deepcopy(model.inner).double()
    x = example(dtype=torch.float32)
    with torch.no_grad():
        found, wanted, exact = fast(model)(x), reference(x), wide(x.double())
    ours, theirs = (float((y.double() - exact).norm()) for y in (found, wanted))
    assert ours <= 1.5 * (1 + 2 / exact.numel() ** 0.5) * theirs
    return report()


@situation(OPERATORS, "`no_grad` and `inference_mode` regions inside of the model", ALL)
def modes_inside() -> Report:
    def change(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = x * 2
        with torch.inference_mode():
            return y + 1

    return outputs(Around(change).eval(), example())


class AddsInPlace(nn.Module):
    """``x += block(x)``"""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.embed(x)
        for block in self.inner.blocks:
            x += block.down(torch.relu(block.up(block.norm(x))))
        return self.inner.head(self.inner.norm(x))


@situation(OPERATORS, "residual additions in place", ALL)
def in_place() -> Report:
    return outputs(AddsInPlace().eval(), example())


class AddsIntoTheBranch(nn.Module):
    """``y += x``, where autograd allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.embed(x)
        for block in self.inner.blocks:
            y = block.down(torch.relu(block.up(block.norm(x))))
            y += x
            x = y
        return self.inner.head(self.inner.norm(x))


@situation(OPERATORS, "residual additions in place, in training", ALL)
def in_place_in_training() -> Report:
    return same_training(AddsIntoTheBranch().train(), example())


class WritesItsInput(nn.Module):
    """Writes to the caller's tensor and returns a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x.mul_(2.0)
        return self.inner(x), x[:2]


@situation(OPERATORS, "an input written in place, and a view of it returned", ALL)
def views() -> Report:
    model, reference = pair(WritesItsInput().eval())
    ours, theirs = example(), example()
    with torch.no_grad():
        found, wanted = fast(model)(ours), reference(theirs)
    close((found, ours), (wanted, theirs))
    assert found[1].data_ptr() == ours.data_ptr()
    return report()


@dataclass
class Output:
    hidden: torch.Tensor
    scale: float


class Spoken(nn.Module):
    """Keyword inputs, numbers and strings among them; a dataclass comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor, *, scale: float = 1.0, mode: str = "plain") -> Output:
        hidden = self.inner(x) * scale
        return Output(hidden if mode == "plain" else hidden.tanh(), scale)


@situation(OPERATORS, "keyword and non-tensor inputs, a dataclass for output", ALL, slow=True)
def spoken() -> Report:
    model, reference = pair(Spoken().eval())
    run = fast(model)
    with torch.no_grad():
        for settings in ({"scale": 2.0}, {"scale": 3.0, "mode": "tanh"}, {}):
            found, wanted = run(example(), **settings), reference(example(), **settings)
            close(found.hidden, wanted.hidden)
            assert found.scale == wanted.scale
    return report()


class WritesAWeight(nn.Module):
    """Changes a weight that would be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inner.embed.weight.mul_(0.9)
        return self.inner(x)


@situation(OPERATORS, "a graph that writes to a weight: centred where the weight was read", ALL)
def weight_mutated() -> Report:
    model, reference = pair(WritesAWeight().eval())
    run = fast(model)
    with torch.no_grad():
        for _ in range(3):
            close(run(example()), reference(example()))
    close(model.state_dict(), reference.state_dict(), 0.0)
    assert report().centrings == 1
    return report()


@situation(OPERATORS, "an input that shares memory with a weight", ALL)
def aliases_a_weight() -> Report:
    model, reference = pair(prenorm())
    run = fast(model)
    with torch.no_grad():
        for one in (0, 1):
            ours, theirs = (
                m.embed.weight[None, :8] * 1.0 if one else m.embed.weight[None, :8]
                for m in (model, reference)
            )
            close(run(ours), reference(theirs))
    return report()


class WritesThroughTheInput(WritesAWeight):
    """Writes to its input, which may be a weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(0.5)
        return self.inner(x)


@situation(OPERATORS, "an input that is written and shares memory with a weight", ALL)
def writes_an_alias() -> Report:
    inner: dict[str, Any] = {"normfuse.inner": "aot_eager"}  # shared memory is AOTAutograd's business
    model, reference = pair(WritesThroughTheInput().eval())
    run = fast(model, **inner)
    with torch.no_grad():
        close(run(example()), reference(example()))
        for _ in range(2):
            close(run(model.inner.embed.weight[None]), reference(reference.inner.embed.weight[None]))
    return report()


@situation(
    OPERATORS, "complex parameters in a writer", "works, 2 of 3 converted; refused: `nonlinear_writer`"
)
def complex_weights() -> Report:
    phase = nn.Parameter(torch.randn(16, dtype=torch.complex128))

    class Rotated(Inside):
        def __init__(self) -> None:
            super().__init__(lambda x: (x * phase).real)
            self.phase = phase

    return outputs(Rotated().eval(), example())


class Float8(PreNorm):
    """The embedding's weight is kept in float8."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed", torch.randn(16, 8).to(torch.float8_e4m3fn))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.linear(x, self.packed.to(torch.float64))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@situation(OPERATORS, "float8 weights, cast before use", "refused: `weight_dtype`")
def float8() -> Report:
    model = Float8().double().eval()
    model.packed = torch.randn(16, 8).to(torch.float8_e4m3fn)
    return outputs(model, example(), **{"normfuse.policy": "pays"})


@situation(
    OPERATORS, "weights on another device than the model, moved before use", "refused: `weight_device`"
)
def offloaded() -> Report:
    return rewritten(scaled_writer, CASES[scaled_writer])[0]
