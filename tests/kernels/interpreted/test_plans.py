"""Every plan of a short list computes the same function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from normfuse.kernels import linear_operator, operators
from normfuse.kernels.plan import forward_plans, linear_plans
from tests.kernels.bounds import check
from tests.kernels.cases import Case, call
from tests.kernels.interpreted.test_linear import test_forward as forward

ALL = ("weight", "bias", "residual", "gate")


@pytest.fixture(params=[1, 2])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Have the kernels run with the plans of one place of their lists behind the first."""

    def taken(kernel: str, plans: Sequence[Any], *more: object) -> Any:
        return plans[min(request.param, len(plans) - 1)]

    for module in (operators, linear_operator):
        monkeypatch.setattr(module, "chosen", taken)
    return int(request.param)


@pytest.mark.parametrize("width", [40, 1000, 2048])
@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm", "crms_norm"])
def test_other_plans_of_the_norms(norm: str, width: int, place: int) -> None:
    assert len(forward_plans(width)) == 2
    if place == 1:
        case = Case(norm, 9 if width < 1000 else 3, width, torch.bfloat16, ALL, groups=2)
        check(call(case), truncates=True)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(3, 300, 70), (40, 140, 20), (600, 70, 20)])
def test_other_plans_of_the_product(rows: int, inputs: int, outputs: int, place: int) -> None:
    if place < len(linear_plans(rows, outputs, 2)):
        forward(rows, inputs, outputs, torch.bfloat16, adds=True)
