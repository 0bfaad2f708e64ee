"""What is drawn of a program: who writes a stream, which norms lead to whom, and who reads it as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normfuse.capture.exported import program_of
from normfuse.options import Options
from normfuse.passes import pipeline
from normfuse.passes.pipeline import run_pipeline
from normfuse.report import Report
from tests.passes.affine_cases import Net

D = 4


def drawn(run, width=D, options=None, **held):
    model = Net(run, held).double().eval()
    with torch.no_grad():
        program = program_of(torch.export.export(model, (torch.ones(2, 3, width).double(),), strict=False))
    return run_pipeline(program, Options.checked(options or {}, prefix=""))[0]


def short(stream):
    """The parts of a stream, each as its role, its name, and the norms behind it or the readers of it."""
    return [
        (p.role, p.operation.module or p.operation.operator, p.after or tuple(r.module for r in p.readers))
        for p in stream
    ]


def test_a_block_leaves_the_stream_at_a_norm_and_comes_back_at_a_writer():
    def run(s, x):
        h = s.lin(x)
        h = h + s.down(torch.relu(s.up(s.one(h))))
        return s.head(s.two(h))

    linear = {name: nn.Linear(D, D) for name in ("lin", "up", "down", "head")}
    report = drawn(run, one=nn.LayerNorm(D), two=nn.LayerNorm(D), **linear)
    assert [short(s) for s in report.streams] == [
        [
            ("writer", "lin", ()),
            ("norm", "one", ("up",)),
            ("writer", "down", (0,)),
            ("norm", "two", ("head",)),
        ]
    ]
    assert report.to_dict()["streams"][0][2]["after"] == [0]


def test_norms_of_any_kind_are_drawn_where_they_share_a_stream():
    def run(s, x):
        h = s.lin(x) + s.positions
        return s.two(h + s.gamma * s.down(s.one(h)))

    parameters = {"gamma": nn.Parameter(torch.ones(D)), "positions": nn.Parameter(torch.ones(3, D))}
    report = drawn(
        run, one=nn.RMSNorm(D), two=nn.LayerNorm(D), lin=nn.Linear(D, D), down=nn.Linear(D, D), **parameters
    )
    (stream,) = report.streams
    assert [part[:2] for part in short(stream)] == [
        ("writer", "positions"),
        ("writer", "lin"),
        ("norm", "one"),
        ("writer", "down"),
        ("norm", "two"),
    ]


def test_what_reads_the_stream_before_any_norm_is_named():
    def run(s, x):
        h = s.lin(x)
        return s.one(h), torch.relu(h).sum()

    (stream,) = drawn(run, one=nn.LayerNorm(D), lin=nn.Linear(D, D)).streams
    assert [(p.role, p.operation.operator) for p in stream if p.role == "reader"] == [("reader", "relu")]


def test_a_norm_with_stored_statistics_stands_alone():
    def run(s, x):
        return torch.relu(s.norm(s.lin(x).transpose(1, 2)))

    (stream,) = drawn(run, norm=nn.BatchNorm1d(D), lin=nn.Linear(D, D)).streams
    assert [part.role for part in stream] == ["writer", "norm"]


def test_the_sites_of_a_further_graph_are_counted_on():
    def run(s, x):
        return s.one(s.lin(x))

    one, other = (drawn(run, one=nn.LayerNorm(D), lin=nn.Linear(D, D)) for _ in range(2))
    report = Report()
    for found in (one, other):
        report.merge(found)
    norms = [part.site for stream in report.streams for part in stream if part.role == "norm"]
    assert norms == [0, 1]
    assert [report.sites[n].graph for n in norms] == [0, 1]


def test_a_model_without_norms_has_no_streams():
    assert drawn(lambda s, x: s.lin(x), lin=nn.Linear(D, D)).streams == []


def test_what_cannot_be_drawn_is_rewritten_all_the_same(monkeypatch):
    def fails(*given):
        raise RuntimeError("no picture")

    monkeypatch.setattr(pipeline, "pictured", fails)
    monkeypatch.setenv("NORMFUSE_STRICT", "0")
    report = drawn(lambda s, x: s.one(s.lin(x)), one=nn.LayerNorm(D), lin=nn.Linear(D, D))
    assert (report.streams, report.after) == ([], {"rms_norm": 1})
    monkeypatch.setenv("NORMFUSE_STRICT", "1")
    with pytest.raises(RuntimeError, match="no picture"):
        drawn(lambda s, x: s.one(s.lin(x)), one=nn.LayerNorm(D), lin=nn.Linear(D, D))
