"""The pages in a browser: nothing runs off the screen, all can be read and reached, nothing is loaded."""

from __future__ import annotations

import pytest

from tests.page.browser import browser, is_installed
from tests.page.reports import hostile_report, mixed_report
from tests.page.test_other_pages import leaf, measured

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="needs chromium and chromedriver"),
]

#: The least contrast of a text with what is behind it, and which text that is (WCAG 2, 1.4.3).
CONTRAST = """
const channel = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const numbers = (color) => color.match(/[0-9.]+/g).map(Number);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
function behind(node) {
  for (let at = node; at; at = at.parentElement) {
    const found = numbers(getComputedStyle(at).backgroundColor);
    if (found.length === 3 || found[3] > 0) return found;
  }
  return [255, 255, 255];
}
let worst = [99, ""];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  if (!own || !node.checkVisibility() || node.tagName === "SCRIPT") continue;
  const pair = [light(numbers(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
  const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
  if (ratio < worst[0]) worst = [ratio, node.outerHTML.slice(0, 120)];
}
return worst;
"""
OFF = """
const wide = document.documentElement.clientWidth;
return [...document.querySelectorAll("body *")]
  .filter((node) => node.checkVisibility() && !(wide > 1000 && node.closest(".wide")))
  .filter((node) => node.getBoundingClientRect().right > wide + 1)
  .map((node) => node.outerHTML.slice(0, 120));
"""


@pytest.fixture(scope="module")
def session():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    from normfuse.verify.equivalence import Equivalence

    folder = tmp_path_factory.mktemp("pages")
    return {
        "report": mixed_report().to_html(folder / "report.html", model="/a/folder/" + "model" * 20),
        "hostile": hostile_report().to_html(folder / "hostile.html"),
        "verify": Equivalence.of([leaf("y"), leaf("x" * 90, 9.0, False)]).to_html(folder / "verify.html"),
        "bench": measured().to_html(folder / "bench.html"),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", ["report", "hostile", "verify", "bench"])
def test_a_page_fits_and_can_be_read(name, width, scheme, session, pages):
    session.open(pages[name], width, scheme)
    session.script("document.querySelectorAll('details').forEach((d) => d.open = true)")
    session.script("document.querySelectorAll('button.more').forEach((b) => b.click())")
    assert session.script("return document.documentElement.scrollWidth") <= width
    assert session.script(OFF) == []
    labels = session.script("return [...document.querySelectorAll('footer dt')].map((d) => d.offsetHeight)")
    assert len(set(labels)) == 1  # all on one line
    ratio, text = session.script(CONTRAST)
    assert ratio >= 4.5, text
    assert session.complaints() == []
    assert session.script("return performance.getEntriesByType('resource').length") == 0
    assert "owned" not in session.script("return document.title").replace("'owned'", "")


def shown(session):
    return session.script(
        "return [...document.querySelectorAll('tbody.group')].filter((g) => !g.hidden)"
        ".map((g) => g.dataset.action)"
    )


def test_filters_rows_and_links_do_what_they_say(session, pages):
    session.open(pages["report"], 1280)
    assert shown(session) == ["converted", "reverted", "kept", "folded"]
    session.script("document.querySelector('input[value=converted]').click()")
    assert shown(session) == ["reverted", "kept", "folded"]
    session.script(
        "const s = document.querySelector('input[type=search]'); s.value = 'RAW';"
        "s.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert shown(session) == ["kept"]
    assert session.script("return document.querySelector('output').textContent") == "1 shown"
    session.script("document.querySelector('a.tick').click()")
    opened = "return [...document.querySelectorAll('tbody.open')].map((g) => g.id)"
    assert session.script("return new Promise((done) => setTimeout(done, 100))") is None
    assert session.script(opened) == ["norms-1"]
    assert len(shown(session)) == 4
    button = "document.querySelector('#norms-1 button')"
    assert session.script(f"return {button}.getAttribute('aria-expanded')") == "true"
    session.script(f"{button}.click()")
    assert session.script(opened) == []


def test_every_control_can_be_reached_by_keyboard_and_has_a_name(session, pages):
    session.open(pages["report"], 1280)
    names = session.script(
        "return [...document.querySelectorAll('button, summary, input')].filter((e) => e.tabIndex >= 0)"
        ".map((e) => (e.textContent || e.labels[0].textContent).trim())"
    )
    assert len(names) == session.script("return document.querySelectorAll('button, summary, input').length")
    assert all(names)
