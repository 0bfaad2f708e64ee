"""Shapes that change from call to call."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

import normfuse
from normfuse.report import Report
from tests.backends.networks import example, prenorm
from tests.situations.models import CONVERT, close, report
from tests.situations.registry import situation

SHAPES = "Shapes"


def compilations(
    backend: Any, model: nn.Module, calls: list[torch.Tensor], **settings: Any
) -> tuple[int, list[list[str]]]:
    """How many graphs Dynamo hands to a backend over some calls, all of them compared with the model, and
    the guards of what it keeps.
    """
    torch._dynamo.reset()
    graphs = []

    def counted(gm: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(gm)
        made: Callable[..., Any] = backend(gm, inputs)
        return made

    reference, run = copy.deepcopy(model), torch.compile(model, backend=counted, **settings)
    with torch.no_grad():
        for x in calls:
            close(run(x), reference(x))
    return len(graphs), [
        _guards(entry) for entry in _debug_get_cache_entry_list(type(model).forward.__code__)
    ]


def _guards(entry: Any) -> list[str]:
    """Each guard as a line, without the numbers that count the compilations of a process."""
    lines = str(entry.guard_manager).splitlines()
    return sorted(re.sub(r"__builtins_dict___\d+", "builtins", line) for line in lines)


def as_often(model: nn.Module, calls: list[torch.Tensor], **settings: Any) -> Report:
    """Compare with the model, and compilations and guards with those of a backend that does nothing."""
    plain, ours = without_and_with(model, calls, **settings)
    assert ours == plain
    return report()


def without_and_with(
    model: nn.Module, calls: list[torch.Tensor], **settings: Any
) -> list[tuple[int, list[list[str]]]]:
    """Compilations and guards of a backend that does nothing, and of ours."""
    backends = (
        lambda gm, inputs: gm.forward,
        lambda gm, inputs: normfuse.normfuse_backend(gm, inputs, options=CONVERT),
    )
    return [compilations(backend, model, calls, **settings) for backend in backends]


def sized(batch: int, length: int) -> torch.Tensor:
    return example(batch)[:, :1].repeat(1, length, 1) + torch.arange(length, dtype=torch.float64)[:, None]


VARIED = [sized(4, 6), sized(2, 3), sized(5, 9), sized(9, 2)]


@situation(SHAPES, "`dynamic=True`, several batch sizes and lengths", "works, 3 of 3 converted")
def dynamic() -> Report:
    return as_often(prenorm(), VARIED, dynamic=True)


@situation(SHAPES, "a second shape makes the sizes dynamic", "works, 3 of 3 converted")
def automatically_dynamic() -> Report:
    return as_often(prenorm(), VARIED)


@situation(SHAPES, "`dynamic=False`, one graph for each shape", "works, 3 of 3 converted", slow=True)
def static() -> Report:
    return as_often(prenorm(), VARIED[:2], dynamic=False)


@situation(SHAPES, "`torch._dynamo.mark_dynamic` on the batch", "works, 3 of 3 converted", slow=True)
def marked() -> Report:
    calls = [sized(4, 6), sized(2, 6), sized(9, 6)]
    for x in calls:
        torch._dynamo.mark_dynamic(x, 0)
    return as_often(prenorm(), calls)


class ByHand(nn.Module):
    """A LayerNorm and a Llama RMSNorm written out, with eps as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.down = (nn.Linear(*s).double() for s in ((8, 16), (16, 16), (16, 4)))
        self.weight, self.eps = nn.Parameter(torch.randn(16).double()), 1e-3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        centred = x - x.mean(-1, keepdim=True)
        x = self.mid(self.weight * (centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)))
        return self.down(self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)))


@situation(
    SHAPES,
    "`dynamic=True`, eps is a number of a module: a constant, with a guard",
    "works, 1 of 2 converted; refused: `already_rms_norm`",
)
def dynamic_eps() -> Report:
    (_, (plain,)), (_, (ours,)) = without_and_with(ByHand(), VARIED, dynamic=True)
    told_apart = [line for line in plain + ours if (line in plain) != (line in ours)]
    assert any("self'].eps == 0.001" in line for line in ours)
    assert all("eps" in line for line in told_apart)
    return report()


class Selected(nn.Module):
    """Tokens chosen by a mask: their number is not known when the graph is made."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x[x[..., 0] > 0])


@situation(SHAPES, "sizes that depend on data", "works, 3 of 3 converted")
def data_dependent() -> Report:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        return as_often(Selected(), VARIED[:2], dynamic=True)
