"""The page that shows how to add a norm: its code runs, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import normfuse
from normfuse.patterns import reader, transfer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "new-norm.md"


@pytest.fixture(scope="module")
def page():
    names = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_made_up_norms_are_found(page):
    page["test_both_are_found"]()


def test_a_near_miss_of_the_made_up_step(page):
    class Miss(torch.nn.Module):
        def forward(self, x):
            return x * torch.rsqrt(torch.ops.acme.mean_square(x + 1) + 1e-6)

    assert normfuse.rewrite(Miss().eval(), (torch.randn(4, 8),)).report.found == {}


def test_an_unknown_operator_is_no_norm():
    @torch.library.custom_op("acme::unknown", mutates_args=())
    def unknown(x: torch.Tensor) -> torch.Tensor:
        return (x * x).mean(-1, keepdim=True)

    unknown.register_fake(lambda x: x.new_empty(*x.shape[:-1], 1))

    class Model(torch.nn.Module):
        def forward(self, x):
            return x * torch.rsqrt(unknown(x) + 1e-6)

    assert normfuse.rewrite(Model().eval(), (torch.randn(4, 8),)).report.found == {}


def test_one_operator_has_one_meaning():
    with pytest.raises(ValueError, match="has a transfer function already"):
        transfer(torch.ops.aten.rsqrt.default)(lambda node, facts: None)
    with pytest.raises(ValueError, match="has a reader already"):
        reader(torch.ops.aten.layer_norm.default)(lambda node, facts: None)
