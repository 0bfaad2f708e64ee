"""The page that shows how to add a norm: its code runs, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import normfuse
from normfuse.ir import kinds
from normfuse.options import Options
from normfuse.patterns import reader, transfer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "new-norm.md"


@pytest.fixture(scope="module", autouse=True)
def _nobody_else_is_taught():
    """A test elsewhere may ask for a kind that there is not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "_taught", set())
        patch.setattr(kinds, "_teachers", set())
        yield


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


def test_a_taught_kind_may_be_expected(page):
    model, x = page["Model"]().eval(), torch.randn(4, 8)
    made = normfuse.rewrite(model, (x,), expect={"deviation_norm": 1, "rms_norm": 1})
    assert made.report.after == {"deviation_norm": 1, "rms_norm": 1}
    with pytest.raises(normfuse.ExpectationError, match="expected 2 deviation_norm after rewriting, found 1"):
        normfuse.rewrite(model, (x,), expect={"deviation_norm": 2})
    options = {"normfuse.inner": "eager", "normfuse.expect": {"deviation_norm": 1}}
    with torch.no_grad():
        torch.compile(model, backend="normfuse", options=options)(x)


@pytest.mark.parametrize("count", [0, 1])
def test_an_unknown_kind_still_gets_the_nearest_name(page, count):
    model, x = page["Model"]().eval(), torch.randn(4, 8)
    with pytest.raises(normfuse.OptionError, match="did you mean deviation_norm"):
        normfuse.rewrite(model, (x,), expect={"deviaton_norm": count})


def test_a_kind_named_in_advance():
    @torch.library.custom_op("acme::named_norm", mutates_args=())
    def named_norm(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "_teachers", set())
        reader(torch.ops.acme.named_norm.default, kind="named_norm")(lambda node, facts: None)
        assert Options.checked({"expect": {"named_norm": 0}}).expect == {"named_norm": 0}
        with pytest.raises(normfuse.OptionError, match="did you mean named_norm"):
            Options.checked({"expect": {"nmaed_norm": 0}})
