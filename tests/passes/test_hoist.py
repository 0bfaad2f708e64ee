"""Folded weights lie in memory as what they stand for, in memory of their own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph

import normfuse
from normfuse.folding.recipe import Recipe


class OfWeights(nn.Module):
    """A norm of a weight, in a layout, beside a norm of the input."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.table = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
        self.proj = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x):
        return F.layer_norm(self.proj(x), (4,)), self.layout(F.layer_norm(self.table, (4,)))


LAYOUTS = {
    "transposed": lambda t: t.t(),
    "one row of each pair": lambda t: torch.cat([t, t])[::2],
    "repeated": lambda t: t.expand(2, 3, 4),
    "repeated and transposed": lambda t: t.expand(2, 3, 4).transpose(0, 2),
    "overlapping": lambda t: t.reshape(-1).unfold(0, 5, 2),
    "added to what is repeated": lambda t: t + t[:1].expand(3, 4),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_made_of_weights_keep_their_layout(name):
    model, x = OfWeights(LAYOUTS[name]).eval(), torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(x)
        made = normfuse.rewrite(model, (x,))
        compiled = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
        for found in (made.module()(x), compiled(x)):
            assert [f.stride() for f in found] == [w.stride() for w in wanted]
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert made.report.after.get("layer_norm", 0) == 0


@pytest.mark.parametrize("name", ["as it is", *LAYOUTS])
def test_what_the_caller_does_to_outputs_made_of_weights_is_not_seen_by_the_next_call(name):
    """And what a later call folds is not seen in the outputs of an earlier one."""
    model = OfWeights({**LAYOUTS, "as it is": lambda t: t}[name]).eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(x)[1].clone()
        compiled = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
        for run in (normfuse.rewrite(model, (x,)).module(), compiled):
            run(x)[1].untyped_storage().fill_(0)
            torch.testing.assert_close(run(x)[1], wanted, rtol=1e-12, atol=1e-12)
        kept = compiled(x)[1]
        model.table.mul_(torch.randn(4, dtype=torch.float64))
        assert not torch.allclose(compiled(x)[1], wanted)
        torch.testing.assert_close(kept, wanted, rtol=1e-12, atol=1e-12)


def test_norms_of_norms_of_weights_are_constants_at_once():
    model = OfWeights(lambda t: F.layer_norm(F.layer_norm(t, (4,)).t(), (3,))).eval()
    made = normfuse.rewrite(model, (torch.randn(5, 4, dtype=torch.float64),))
    assert [s.action for s in made.report.sites] == ["converted", "folded", "folded", "folded"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_that_took_a_batch_norm_keeps_its_layout(layout, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).double().eval().to(memory_format=layout)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64).to(memory_format=layout)
    made = normfuse.rewrite(model, (x,))
    loaded = torch.export.load(made.save(tmp_path / "out.pt2"))
    for program in (made.program, loaded):
        (weight,) = [t for t in program.state_dict.values() if t.dim() == 4 and t.dtype == x.dtype]
        assert weight.is_contiguous(memory_format=layout)
        assert program.module()(x).stride() == model(x).stride()


def test_a_folded_weight_never_shares_memory_with_its_source():
    """A later fold writes where the folded weight lies."""
    source = torch.randn(3, 4)
    for stride in (None, (4, 1), (1, 3)):
        body = Graph()
        body.output(body.placeholder("source_0"))
        made = Recipe(body, nn.Module(), torch.float32, "", "", stride).compute([source])
        assert torch.equal(made, source)
        assert made.stride() == (stride or (4, 1))
        assert made.data_ptr() != source.data_ptr()
