"""A whole encoder layer in one operator is the same function written out, and its norms are seen."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import normfuse
from normfuse.capture.spell_out import spell_out
from normfuse.ir.calls import aten
from tests.patterns.capturing import program_of

WIDTH, HEADS, ROWS = 16, 4, 5
LAYER, ATTENTION = aten._transformer_encoder_layer_fwd.default, aten._native_multi_head_attention.default

MASKS = {
    "none": (None, None),
    "of positions": (torch.ones(ROWS, ROWS).triu(1).bool(), 0),
    "of positions, in numbers": (torch.full((ROWS, ROWS), -torch.inf).triu(1), 0),
    "of padding": (torch.tensor([[False] * ROWS, [False] * 3 + [True] * 2, [True] * ROWS]), 1),
    "of both": (torch.rand(3, HEADS, ROWS, ROWS, generator=torch.Generator().manual_seed(1)) > 0.6, 2),
}  # fmt: skip


def layer_function(norm_first, use_gelu, kind):
    def function(x, mask, *weights):
        attention, norms, forward = weights[:4], weights[4:8], weights[8:]
        return LAYER(x, WIDTH, HEADS, *attention, use_gelu, norm_first, 1e-5, *norms, *forward, mask, kind)

    return function


def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,), *[(WIDTH,)] * 4,
        (2 * WIDTH, WIDTH), (2 * WIDTH,), (WIDTH, 2 * WIDTH), (WIDTH,),
    ]  # fmt: skip
    return [torch.randn(shape, generator=generator) / (shape[-1] ** 0.5) for shape in shapes]


def wide(values):
    return [v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values]


def assert_as_exact(found, original, truth):
    """Not a number where the original is none; else twice its error, and 16 roundings of 6e-8."""
    assert torch.equal(found.isnan(), truth.isnan())
    error, allowed = (
        (t.nan_to_num() - truth.nan_to_num()).norm() for t in (found.double(), original.double())
    )
    assert error <= 2 * allowed + 16 * 6e-8 * truth.nan_to_num().norm()


@pytest.mark.parametrize("mask", sorted(MASKS))
@pytest.mark.parametrize(("norm_first", "use_gelu"), [*itertools.product((True, False), repeat=2)])
def test_an_encoder_layer_is_the_same_function(norm_first, use_gelu, mask):
    values, kind = MASKS[mask]
    function = layer_function(norm_first, use_gelu, kind)
    inputs = [torch.randn(3, ROWS, WIDTH, generator=torch.Generator().manual_seed(2)), values, *weights()]
    program = program_of(function, inputs, 12)
    assert spell_out(program.gm) == []
    program.gm.recompile()
    targets = [n.target for n in program.gm.graph.nodes]
    assert LAYER not in targets
    assert targets.count(aten.layer_norm.default) == 2
    with torch.no_grad():
        assert_as_exact(program.gm(*inputs), function(*inputs), function(*wide(inputs)))


@pytest.mark.parametrize("mask", sorted(MASKS))
@pytest.mark.parametrize(("needs", "average"), [(False, False), (True, True), (True, False)])
def test_attention_is_the_same_function(needs, average, mask):
    values, kind = MASKS[mask]

    def function(x, mask, *weights):
        found = ATTENTION(x, x, x, WIDTH, HEADS, *weights, mask, needs, average, kind)
        return found if needs else found[:1]

    inputs = [torch.randn(3, ROWS, WIDTH, generator=torch.Generator().manual_seed(2)), values, *weights()[:4]]
    program = program_of(function, inputs, 4)
    assert spell_out(program.gm) == []
    program.gm.recompile()
    assert ATTENTION not in [n.target for n in program.gm.graph.nodes]
    with torch.no_grad():
        parts = zip(program.gm(*inputs), function(*inputs), function(*wide(inputs)), strict=True)
    for found, original, truth in parts:
        assert_as_exact(found, original, truth)


def test_attention_to_something_else_stays():
    def function(x, y, *weights):
        return ATTENTION(x, y, y, WIDTH, HEADS, *weights, None, False, True, None)[0]

    x = torch.randn(3, ROWS, WIDTH)
    program = program_of(function, [x, x.clone(), *weights()[:4]], 4)
    assert spell_out(program.gm) == []
    assert ATTENTION in [n.target for n in program.gm.graph.nodes]


def test_what_stays_is_counted_and_the_switch_is_named():
    function = layer_function(True, False, None)
    inputs = [torch.randn(0, ROWS, WIDTH), None, *weights()]
    program = program_of(function, inputs, 12)
    (note,) = spell_out(program.gm)
    assert "hides 2 norms" in note
    assert "its input has no elements" in note
    assert "set_fastpath_enabled(False)" in note
    assert LAYER in [n.target for n in program.gm.graph.nodes]


def test_every_norm_of_an_encoder_in_evaluation_is_found():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False).eval()
    x = torch.randn(3, ROWS, WIDTH)
    with torch.no_grad():
        found = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})(x)
        assert_as_exact(found, model(x), model.double()(x.double()))
    report = normfuse.last_report()
    assert (report.found, report.after) == ({"layer_norm": 5}, {"rms_norm": 5})
    assert [s.module for s in report.sites] == [
        "layers.0.norm1", "layers.0.norm2", "layers.1.norm1", "layers.1.norm2", "norm",
    ]  # fmt: skip


def test_verification_by_sites_accepts_it():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(8, WIDTH), encoder).eval()
    options = {"normfuse.inner": "eager", "normfuse.verify": "sites"}
    with torch.no_grad():
        torch.compile(model, backend="normfuse", options=options)(torch.randn(3, ROWS, 8))
    assert normfuse.last_report().after == {"rms_norm": 3}
