"""The fastest plan of a short list is taken; it is measured once, and never in a traced or captured call."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from normfuse.kernels import choice, version
from normfuse.kernels.choice import chosen
from normfuse.kernels.plan import LinearPlan, linear_plans

PLANS = linear_plans(1, 4096, 4)
X = torch.empty(1, 4096)


class Device:
    """A device that is not here, with a clock made of numbers."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = dict(zip(PLANS, seconds, strict=True))
        self.measured: list[LinearPlan] = []
        self.is_capturing = False

    def launch(self, plan: LinearPlan) -> None:
        if math.isinf(self.seconds[plan]):
            raise RuntimeError("out of resource: shared memory\nand more")

    def clock_of(self, run: Any, _: torch.device) -> Callable[[], float]:
        run()
        (plan,) = run.args
        self.measured.append(plan)
        return lambda: self.seconds[plan]

    def choose(self, x: torch.Tensor = X, rows: int = 1, *form: object) -> LinearPlan:
        return chosen("linear_rms_norm", PLANS, self.launch, x, rows, *form)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Device]:
    """Make the CPU a device to choose on; what was measured before is kept as in another process."""

    def made(*seconds: float) -> Device:
        device = Device(*seconds)
        monkeypatch.setattr(choice, "_has_choice", lambda _: True)
        monkeypatch.setattr(choice, "_name", lambda _: "some device")
        monkeypatch.setattr(choice, "clock_of", device.clock_of)
        monkeypatch.setattr(choice, "_file", lambda: tmp_path / "kept" / "kernels.json")
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: device.is_capturing)
        choice._measured.cache_clear()
        return device

    yield made
    choice._measured.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ((3.0, 2.0, 1.0), 2),
        ((3.0, 1.0, 2.0), 1),
        ((1.0, 2.0, 2.0), 0),
        ((1.0, 0.98, 0.98), 0),  # no more than noise
        ((math.inf, 2.0, 3.0), 1),
        ((1.0, math.inf, 0.5), 2),
        ((math.inf, math.inf, math.inf), 0),
    ],
)
def test_the_fastest_that_runs_is_taken(
    here: Callable[..., Device], seconds: tuple[float, ...], wanted: int
) -> None:
    assert here(*seconds).choose() == PLANS[wanted]


def test_it_is_measured_once_on_a_machine(here: Callable[..., Device]) -> None:
    first = here(3.0, 2.0, 1.0)
    assert [first.choose() for _ in range(3)] == [PLANS[2]] * 3
    assert first.measured == list(PLANS)
    again = here(1.0, 2.0, 3.0)
    assert again.choose() == PLANS[2]
    assert again.measured == []


def test_nothing_is_kept_of_a_device_that_runs_nothing(here: Callable[..., Device]) -> None:
    broken = here(*[math.inf] * 3)
    assert [broken.choose() for _ in range(2)] == [PLANS[0]] * 2
    mended = here(3.0, 2.0, 1.0)
    assert mended.choose() == PLANS[2]


def test_figures_are_kept_by_what_the_time_depends_on(here: Callable[..., Device]) -> None:
    device = here(3.0, 2.0, 1.0)
    for x, rows, form in ((X, 1, 8), (X, 3, 8), (X, 4, 8), (X, 1, 9), (X.half(), 1, 8)):
        device.choose(x, rows, form)
    keys = list(choice._measured())
    assert keys == [
        "some device, linear_rms_norm, torch.float32, 1, 8",
        "some device, linear_rms_norm, torch.float32, 4, 8",
        "some device, linear_rms_norm, torch.float32, 1, 9",
        "some device, linear_rms_norm, torch.float16, 1, 8",
    ]


def test_a_traced_or_captured_call_measures_nothing(here: Callable[..., Device]) -> None:
    """It takes the first plan, and what was measured where there is such a figure."""
    device = here(3.0, 2.0, 1.0)

    def others() -> list[LinearPlan]:
        with FakeTensorMode() as mode:
            found = [device.choose(mode.from_tensor(X))]
        with FlopCounterMode(display=False):
            found.append(device.choose())
        device.is_capturing = True
        found.append(device.choose())
        device.is_capturing = False
        return found

    assert others() == [PLANS[0]] * 3
    assert device.measured == []
    assert device.choose() == PLANS[2]
    assert others() == [PLANS[2]] * 3
    assert device.measured == list(PLANS)


def test_an_exported_call_measures_nothing(here: Callable[..., Device]) -> None:
    device, found = here(3.0, 2.0, 1.0), list[LinearPlan]()

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found.append(device.choose(x))
            return x + 1

    torch.export.export(Model(), (X,), strict=False)
    assert set(found) == {PLANS[0]}
    assert device.measured == []


def test_an_open_number_of_rows_takes_the_figure_of_the_example(here: Callable[..., Device]) -> None:
    device, found = here(3.0, 2.0, 1.0), list[LinearPlan]()
    device.choose(X, 6)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found.append(device.choose(x, x.shape[0]))
            return x + 1

    rows = torch.export.Dim("rows", min=2, max=1000)
    program = torch.export.export(Model(), (torch.empty(6, 8),), dynamic_shapes=({0: rows},), strict=False)
    assert set(found) == {PLANS[2]}
    assert program.module()(torch.ones(900, 8)).shape == (900, 8)  # no guard on the number


def test_there_is_no_choice_on_a_cpu_and_under_deterministic_algorithms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cuda = torch.device("cuda")
    assert choice._has_choice(cuda)
    assert not choice._has_choice(torch.device("cpu"))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not choice._has_choice(cuda)


def test_another_source_of_the_kernels_has_other_figures(tmp_path: Path) -> None:
    from normfuse.lowering import measure

    (tmp_path / "code").mkdir()
    kernel = tmp_path / "code" / "forward.py"
    kernel.write_text("x = 1\n")
    first = version.digest(tmp_path)
    assert version.digest(tmp_path) == first
    kernel.write_text("x = 2\n")
    assert version.digest(tmp_path) != first
    own = version.digest(Path(version.__file__).parent)
    assert own in choice._file().name
    assert own in measure._file().name


def test_a_call_is_described_by_its_tensors() -> None:
    given: Any = SimpleNamespace(dtype=torch.half)
    assert choice.described(None, given) == "- torch.float16"
