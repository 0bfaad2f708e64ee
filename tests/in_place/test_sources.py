"""A source that holds already what would be folded is read as it is, until it does not."""

from __future__ import annotations

import pytest
import torch

import normfuse
from normfuse.folding import FoldedWeight
from normfuse.ir.rounding import equals_to_rounding
from tests.checkpoint.test_blocks import centre, recipe
from tests.in_place.models import Text, applied, assert_same, copied_bytes, made, outputs, tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_centred_weights_are_told_from_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = torch.randn(64, 48, dtype=torch.float64)
    centred = (wide - wide.mean(0)).to(dtype)
    exact = centred.double() - centred.double().mean(0)
    assert equals_to_rounding(centred, exact)
    off = centred.clone()
    off[:, 7] *= 1e-3
    off[3, 7] += 1e-3 * 64 * torch.finfo(dtype).eps * float(wide[:, 7].norm())
    assert not equals_to_rounding(off, off.double() - off.double().mean(0))


@pytest.mark.parametrize("axis", [0, 1])
def test_small_slices_are_judged_by_their_own_size(axis: int) -> None:
    value = torch.ones(4, 4)
    value.select(axis, 0).fill_(1e-9)
    off = value.double()
    off.select(axis, 0).add_(1e-15)
    assert not equals_to_rounding(value, off)
    assert equals_to_rounding(value.flatten(), off.flatten())


@pytest.mark.parametrize("value", [torch.tensor([float("nan")]), torch.tensor([float("inf")])])
def test_what_is_not_finite_equals_nothing(value: torch.Tensor) -> None:
    assert not equals_to_rounding(value, value.double())


def test_zeros_equal_zeros_alone() -> None:
    zeros = torch.zeros(3, 3)
    assert equals_to_rounding(zeros, zeros.double())
    assert not equals_to_rounding(zeros, zeros.double() + 1e-30)


def test_a_weight_that_changes_gets_a_copy_and_loses_it_again() -> None:
    model, ids = made(Text()), tokens()
    before, _ = applied(model, ids)
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    outputs(fast, ids)
    assert normfuse.last_report(fast).copied_bytes == 0
    written = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    changed = {k: v.clone() for k, v in model.state_dict().items()}
    assert_same(fast, model, ids)
    assert all(map(torch.equal, model.state_dict().values(), changed.values()))
    model.load_state_dict(written)
    assert_same(fast, before, ids)
    assert all(map(torch.equal, model.state_dict().values(), written.values()))


def test_a_copy_stays_where_it_is() -> None:
    """A CUDA graph may hold its address, also when the source comes to hold the same."""
    weight = torch.nn.Parameter(torch.randn(60, 40).bfloat16())
    made, _ = recipe(centre(0), weight)
    held = FoldedWeight(made, [weight])
    address = held.tensor.data_ptr()
    with torch.no_grad():
        weight.copy_(held.tensor)
    held.refold([weight])
    assert (held.tensor.data_ptr(), held.is_source) == (address, False)
    assert held.agrees([weight])
    assert FoldedWeight(made, [weight]).tensor.data_ptr() == weight.data_ptr()


def test_new_parameters_are_not_written_to() -> None:
    model, ids = made(Text()), tokens()
    applied(model, ids)
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    outputs(fast, ids)
    other = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    model.load_state_dict(other, assign=True)
    assert_same(fast, model, ids)
    assert all(map(torch.equal, model.state_dict().values(), other.values()))


def test_a_centred_table_needs_no_centring() -> None:
    model, ids = made(Text()), tokens()
    assert normfuse.explain(model, ids).centrings == 1
    applied(model, ids)
    report = normfuse.explain(model, ids)
    assert (report.centrings, report.copied_bytes) == (0, 0)
    assert copied_bytes(model, ids) == 0
