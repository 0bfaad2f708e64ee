"""The printed report: one paragraph per reason, however many graph nodes it holds for."""

from __future__ import annotations

import pytest

from normfuse.report import Refusal, Report, Site


def site(number, code="raw_reader", message="add{} (aten.add) reads the values before any norm", remedy=""):
    suffix = f"_{number}" if number else ""
    refusal = Refusal(code, message.format(suffix), f"add{suffix}", remedy)
    module = f"blocks.{number}.norm"
    return Site("layer_norm", {}, module, "", "layer_norm", becomes="layer_norm", refusal=refusal)


def test_nodes_that_differ_in_their_number_share_a_paragraph():
    text = str(Report([site(number) for number in range(5)]))
    assert text.count("raw_reader: ") == 1
    assert "raw_reader: add (aten.add) reads the values before any norm (and 4 like it)." in text


def test_other_reasons_and_remedies_have_their_own():
    sites = [site(0), site(1, remedy="drop it"), site(2, message="view{} reads it"), site(3, code="dropout")]
    text = str(Report(sites))
    assert text.count("raw_reader: ") == 3
    assert text.count("dropout: ") == 1
    assert "Remedy: drop it." in text


def test_a_single_reason_is_not_counted():
    assert "like it" not in str(Report([site(7)]))


def test_very_many_reasons_are_cut_short():
    text = str(Report([site(0, message=f"{chr(97 + n)} reads it") for n in range(20)]))
    assert "... and 8 more reasons" in text


@pytest.mark.parametrize(
    ("size", "shown"),
    [(512, "512 bytes"), (999, "999 bytes"), (33_280, "33.3 kB"), (1_000_000, "1 MB"), (13_476e6, "13.5 GB")],
)
def test_the_last_line_says_what_copies_of_weights_hold(size, shown):
    report = Report([site(0)], copied_bytes=int(size))
    assert str(report).splitlines()[-1] == f"folded weights hold {shown} of memory beside the originals"
    assert "beside the originals" not in str(Report([site(0)]))


def test_copies_of_several_graphs_add_up():
    report = Report(copied_bytes=3)
    report.merge(Report(copied_bytes=4))
    assert (report.copied_bytes, report.to_dict()["copied_bytes"]) == (7, 7)
