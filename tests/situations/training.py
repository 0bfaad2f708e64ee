"""Training: the algebra stays in the graph, so the user's own parameters receive exact gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from normfuse.report import Report
from tests.backends.networks import example, prenorm
from tests.situations.models import (
    EAGER,
    close,
    fast,
    lay_out,
    pair,
    report,
    same_gradients,
    same_training,
)
from tests.situations.registry import situation

TRAINING = "Training"
ALL = "works, 3 of 3 converted"


@situation(TRAINING, 'SGD, `policy="convert"`', ALL)
def sgd() -> Report:
    return same_training(prenorm().train(), example(), steps=20)


@situation(TRAINING, "AdamW", ALL)
def adamw() -> Report:
    return same_training(prenorm().train(), example(), steps=20, optimizer=torch.optim.AdamW)


@situation(TRAINING, "AdamW with `foreach`", ALL)
def foreach() -> Report:
    return same_training(prenorm().train(), example(), optimizer=torch.optim.AdamW, foreach=True)


@situation(TRAINING, "AdamW with `fused`", ALL)
def fused() -> Report:
    return same_training(prenorm().train(), example(), optimizer=torch.optim.AdamW, fused=True)


@situation(TRAINING, "the default policy on a CPU", "refused: `does_not_pay`")
def default_policy() -> Report:
    model, reference = pair(prenorm().train())
    run = torch.compile(model, backend="normfuse", options=EAGER)
    lay_out(run, example()).backward()
    lay_out(reference, example()).backward()
    same_gradients(model, reference, 0.0)
    return report()


@situation(TRAINING, "gradient accumulation", ALL)
def accumulation() -> Report:
    model, reference = pair(prenorm().train())
    run = fast(model)
    for batch in (4, 4, 4):
        lay_out(run, example(batch)).backward()
        lay_out(reference, example(batch)).backward()
    same_gradients(model, reference)
    return report()


class Checkpointed(nn.Module):
    """Every block under ``torch.utils.checkpoint``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.embed(x)
        for block in self.inner.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.inner.head(self.inner.norm(x))


@situation(TRAINING, "every block under `torch.utils.checkpoint`", "refused: `inner_graph`")
def checkpointing() -> Report:
    return same_training(Checkpointed().train(), example())


class Tail(nn.Module):
    """One checkpointed function that does not touch the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(torch.tanh, self.inner(x), use_reentrant=False)


@situation(TRAINING, "`torch.utils.checkpoint` beside the stream", ALL)
def checkpointed_tail() -> Report:
    return same_training(Tail().train(), example())


@situation(TRAINING, "AMP with `GradScaler`, bfloat16", ALL)
def amp() -> Report:
    model, reference = pair(prenorm(dtype=torch.float32).train())
    run, x, wide = fast(model), example(dtype=torch.float32), pair(reference)[1].double()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for one in (run, reference):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = lay_out(one, x).float()
        scaler.scale(loss / 8.0).backward()
    lay_out(wide, x.double()).backward()
    ours, theirs = _error(model, wide), _error(reference, wide)
    assert ours <= 1.5 * theirs
    return report()


def _error(model: nn.Module, wide: nn.Module) -> float:
    """L2 distance of all gradients from float64."""
    pairs = zip(model.parameters(), wide.parameters(), strict=True)
    return float(torch.stack([(p.grad.double() - q.grad).norm() for p, q in pairs]).norm())


@situation(TRAINING, "`torch.func.functional_call` with other parameters", ALL)
def called_functionally() -> Report:
    return _functional(nn.Parameter)


@situation(TRAINING, "the same with plain tensors for parameters", "refused: `stream_enters_graph`")
def called_with_tensors() -> Report:
    return _functional(lambda tensor: tensor.requires_grad_())


def _functional(made: Callable[[torch.Tensor], torch.Tensor]) -> Report:
    model, reference = pair(prenorm().train())
    run = fast(lambda params, x: functional_call(model, params, (x,)))
    params = {n: made(p.detach() * 1.5) for n, p in model.named_parameters()}
    others = {n: made(p.detach().clone()) for n, p in params.items()}
    run(params, example()).square().sum().backward()
    functional_call(reference, others, (example(),)).square().sum().backward()
    close([p.grad for p in params.values()], [p.grad for p in others.values()], 1e-9)
    return report()


@situation(TRAINING, "a frozen base with trainable adapters: the base is folded once", ALL)
def adapters() -> Report:
    model = prenorm().train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in model.blocks:
        block.down = Adapted(block.down)
    made = same_training(model, example())
    assert made.folded == 6
    return made


class Adapted(nn.Module):
    """``W x + B A x`` with trainable ``A`` and ``B``."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        options = {"bias": False, "dtype": torch.float64}
        self.a, self.b = nn.Linear(32, 2, **options), nn.Linear(2, 16, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.b(self.a(x))


class Changed(nn.Module):
    """A pre-norm network whose residual branches pass through ``change``."""

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.inner, self.change = prenorm(), change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.embed(x)
        for block in self.inner.blocks:
            x = x + self.change(block.down(torch.relu(block.up(block.norm(x)))))
        return self.inner.head(self.inner.norm(x))


class DropPath(nn.Module):
    """Drops whole samples (stochastic depth)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.rand(x.shape[0], 1, 1, dtype=x.dtype).add_(0.7).floor_()
        return x.div(0.7) * mask


@situation(TRAINING, "DropPath; the random numbers stay the same", ALL)
def drop_path() -> Report:
    return same_training(Changed(DropPath()).train(), example())


@situation(TRAINING, "element-wise dropout on the branches", "works, 1 of 3 converted; refused: `dropout`")
def dropout() -> Report:
    return same_training(Changed(nn.Dropout(0.3)).train(), example())


@situation(TRAINING, "dropout with p = 0", ALL)
def no_dropout() -> Report:
    return same_training(Changed(nn.Dropout(0.0)).train(), example())


class WithBatchNorm(nn.Module):
    """BatchNorm in training in front of a pre-norm network."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.inner = nn.BatchNorm1d(6).double(), prenorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.bn(x))


@situation(
    TRAINING,
    "BatchNorm in training; running statistics updated as before",
    "works, 3 of 4 converted; refused: `batch_statistics`",
)
def batch_norm() -> Report:
    return same_training(WithBatchNorm().train(), example())


class HalfDetached(nn.Module):
    """A hand-written LayerNorm whose statistics receive no gradient."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.up, self.down, self.whole = nn.Linear(8, 16).double(), nn.Linear(16, 4).double(), whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        with torch.set_grad_enabled(self.whole):
            mean = x.mean(-1, keepdim=True)
            rstd = torch.rsqrt((x - mean).pow(2).mean(-1, keepdim=True) + 1e-5)
        return self.down((x - mean) * rstd)


@situation(TRAINING, "a norm whose statistics are computed under `no_grad`", "refused: `grad_mode`")
def statistics_without_gradient() -> Report:
    return same_training(HalfDetached(False).train(), example())


class Noted(nn.Module):
    """Reads and writes under ``no_grad`` between the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.embed(x)
        for block in self.inner.blocks:
            x = block(x)
            with torch.no_grad():
                self.seen.add_(block.norm(x).abs().mean())
        return self.inner.head(self.inner.norm(x))


@situation(TRAINING, "`no_grad` regions that read the stream through its norms", "works, 5 of 5 converted")
def no_grad_region() -> Report:
    return same_training(Noted().train(), example())


class EditedInPlace(nn.Module):
    """An in-place edit that autograd must not see."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.embed(x)
        with torch.no_grad():
            x.mul_(1.5)
        return self.inner.head(self.inner.norm(x))


@situation(TRAINING, "the stream edited in place under `no_grad`", "refused: `mutated`")
def edited_in_place() -> Report:
    return same_training(EditedInPlace().train(), example())


@situation(
    TRAINING, "`torch.func.grad` inside of the compiled function", "transformed operators left as they are"
)
def func_grad() -> Report:
    model = prenorm()
    params = dict(model.named_parameters())

    def loss(given: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, given, (x,)).square().mean()

    run = fast(lambda given, x: torch.func.grad(loss)(given, x))
    close(run(params, example()), torch.func.grad(loss)(params, example()), 1e-12)
    return report()


@situation(
    TRAINING, "`torch.func.vmap` inside of the compiled function", "transformed operators left as they are"
)
def func_vmap() -> Report:
    weight = prenorm().embed.weight

    def normalized(x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(F.linear(x, weight), (16,))

    with torch.no_grad():
        close(fast(lambda x: torch.func.vmap(normalized)(x))(example()), normalized(example()))
    return report()


@situation(TRAINING, "`torch.func.grad` around the compiled model", "no norms seen")
def grad_around() -> Report:
    model, reference = pair(prenorm())
    run = fast(model)

    def loss(module: nn.Module, params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(module, params, (x,)).square().mean()

    params = {n: p.detach() for n, p in reference.named_parameters()}
    named = {f"_orig_mod.{n}": p for n, p in params.items()}
    found = torch.func.grad(lambda p: loss(run, p, example()))(named)
    wanted = torch.func.grad(lambda p: loss(reference, p, example()))(params)
    close(list(found.values()), list(wanted.values()), 1e-9)
    return report()
