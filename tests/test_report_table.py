"""The printed report: one paragraph per reason, however many graph nodes it holds for."""

from __future__ import annotations

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
