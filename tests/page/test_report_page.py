"""The page of a report: everything is on it, once, and nothing of a model is taken for markup."""

from __future__ import annotations

import pytest
import torch

import normfuse
from normfuse.page.elements import Html, element, joined
from normfuse.page.report import report_page
from normfuse.report import Report
from tests.backends.networks import example, prenorm
from tests.page.reports import HOSTILE, hostile_report, mixed_report, site
from tests.page.structure import Page, checked


def classes(page: Page, tag: str) -> list[str]:
    return [held.get("class") or "" for found, held in page.elements if found == tag]


def test_all_sites_reasons_and_figures_are_on_the_page(tmp_path):
    report = mixed_report()
    target = report.to_html(tmp_path / "page.html", model="a model", verification="verified by hand")
    page = checked(target.read_text(encoding="utf-8"))
    shown = (
        "a model",
        "Verified by hand.",
        "8",
        "1.77 MB",
        "1.04",
        "0.9",
        "a note",
        "at net.py:3: print",
        "One mean is subtracted",
    )
    for text in (*shown, "drop it.", "3.1 times", "blocks.{0-3}.norm", "blocks.4.norm", "batch", "conv"):
        assert text in page.text, text
    assert "5 of the 7 norms are in a cheaper form now: 4 layer_norm became rms_norm" in page.text
    ticks = [name for name in classes(page, "a") if name.startswith("tick")]
    assert ticks == [f"tick {one.action}" for one in report.sites]
    assert sum(int(count) for count in page.attributes("data-count")) == len(report.sites)
    assert page.text.count("raw_reader ·") == 1
    assert normfuse.__version__ in page.text


def test_equal_layers_are_drawn_once_and_others_by_themselves():
    page = checked(report_page(mixed_report()))
    assert page.text.count("4 layers alike, drawn once") == 1
    assert classes(page, "li").count("norm") == 3
    ways = [name for name in classes(page, "i") if name.startswith("way")]
    assert ways == ["way opens", "way reads", "way closes"] * 3


def test_names_are_text_whatever_they_say():
    source = report_page(hostile_report(), model=HOSTILE[0], verification=HOSTILE[1])
    page = checked(source)
    assert "\x00" not in source
    assert source.encode("utf-8")
    for name in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[4], HOSTILE[5], HOSTILE[7]):
        assert page.text.count(name) > 5
    assert len([held for _, held in page.elements if held.get("class") == "group"]) == len(HOSTILE)


def test_the_check_of_pages_can_fail():
    source = report_page(mixed_report(), model="model")
    for wrong in (
        "<b>",
        "</p>",
        "<img>",
        '<p onclick="x">a</p>',
        '<a href="http://a.b">a</a>',
        "<script></script>",
    ):
        with pytest.raises(AssertionError):
            checked(source.replace("<main>", f"<main>{wrong}"))


@pytest.mark.parametrize(
    ("sites", "sentence"),
    [
        ([], "No norm was found."),
        ([site("a")], "The one norm that was found stays: 1 layer_norm stays as found."),
        ([site("a"), site("b")], "None of the 2 norms is in a cheaper form now: 2 layer_norm stay as found."),
        ([site("a", "folded", "")],
         "The one norm is in a cheaper form now: 1 layer_norm vanished into weights."),
        ([site("a", "folded"), site("b", "folded")],
         "All 2 norms are in a cheaper form now: 2 layer_norm are left with less to do."),
        ([site("a", "reverted"), site("b", "converted", "rms_norm")],
         "1 of the 2 norms is in a cheaper form now: 1 layer_norm became rms_norm, 1 was put back"),
    ],
)  # fmt: skip
def test_one_sentence_says_what_was_done(sites, sentence):
    assert sentence in checked(report_page(Report(sites, graphs=1))).text


def test_the_page_of_a_model_draws_its_stream(tmp_path):
    with torch.no_grad():
        report = normfuse.explain(torch.export.export(prenorm(), (example(),)))
    page = checked(report.to_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "blocks.{0-1}" in page.text
    assert "2 layers alike, drawn once" in page.text
    assert "Jiang et al. 2023" in page.text


def test_text_becomes_markup_by_its_type_alone():
    assert element("b", "<i>", Html("<i></i>"), None, ["&", 3]) == "<b>&lt;i&gt;<i></i>&amp;3</b>"
    assert (
        element("input", value='"', checked=True, name=None, disabled=False)
        == '<input value="&quot;" checked>'
    )
    assert element("p", class_="a", aria_label="b") == '<p class="a" aria-label="b"></p>'
    assert joined(["\ud800", "\x07", "\n"]) == "\N{REPLACEMENT CHARACTER}" * 2 + "\n"
