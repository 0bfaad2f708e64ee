"""The page of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from normfuse.page.document import document, figures, section, versions
from normfuse.page.elements import Content, Html, element, sentence
from normfuse.page.scale import plain_table
from normfuse.page.sites import TIMES, mark, reason_anchor, table
from normfuse.page.stream import drawing, together
from normfuse.report_stream import Operation, Part
from normfuse.report_table import (
    Group,
    Reason,
    expectation,
    grouped,
    memory,
    reasons,
    savings,
    shown_bytes,
    starred,
)

if TYPE_CHECKING:
    from normfuse.report import Report, Site

__all__ = ["report_page"]

_UNCHANGED = ("kept", "reverted")


def report_page(report: Report, model: str = "", verification: str = "") -> str:
    """The page of ``report``; ``model`` is what it is about, ``verification`` what was verified, in words."""
    groups, found = grouped(report.sites), reasons(report.sites)
    rows = {id(site): index for index, group in enumerate(groups) for site in group.sites}
    places = {place: rows[id(site)] for place, site in enumerate(report.sites)}
    body = [
        _strip(report.sites, places),
        figures(_figures(report)),
        _worth(report),
        section("streams", "The stream", _streams(report, places)),
        section("norms", "The norms", table(groups, found) if groups else None),
        section("reasons", "Why norms stay", _reasons(found, groups)),
        section("accuracy", "Accuracy", _accuracy(report, verification)),
        section("notes", "Notes", _notes(report)),
    ]
    took = f"{report.seconds:.2g} s" if report.seconds else ""
    facts = {
        "model": model,
        "target": report.target,
        "graphs": str(report.graphs),
        "took": took,
        **versions(),
    }
    return document("report", model, _sentence(report.sites), body, facts)


def _sentence(sites: Sequence[Site]) -> str:
    """What was found and done."""
    if not sites:
        return "No norm was found."
    changed = [site for site in sites if site.action not in _UNCHANGED]
    became = Counter((site.kind, site.becomes) for site in changed)
    steps = [_became(kind, becomes, count) for (kind, becomes), count in became.items()]
    stay = Counter(site.kind for site in sites if site.action == "kept")
    steps += [f"{count} {kind} {'stays' if count == 1 else 'stay'} as found" for kind, count in stay.items()]
    reverted = sum(site.action == "reverted" for site in sites)
    steps += [f"{reverted} {'was' if reverted == 1 else 'were'} put back after measuring"] if reverted else []
    total = len(sites)
    scope = (
        f"All {total} norms"
        if len(changed) == total > 1
        else f"{len(changed) or 'None'} of the {total} norms"
    )
    scope = "The one norm" if total == 1 else scope
    if total == 1 and not changed:
        return f"The one norm that was found stays: {steps[0]}."
    verb = "is" if len(changed) in (0, 1) else "are"
    return f"{scope} {verb} in a cheaper form now: {', '.join(steps)}."


def _became(kind: str, becomes: str, count: int) -> str:
    if not becomes:
        return f"{count} {kind} vanished into weights"
    if kind == becomes:
        return f"{count} {kind} {'is' if count == 1 else 'are'} left with less to do"
    return f"{count} {kind} became {becomes}"


def _strip(sites: Sequence[Site], groups: Mapping[int, int]) -> Html:
    """Every norm, in the order in which the model runs, and what the colours say."""
    if not sites:
        return Html("")
    ticks = [
        element(
            "a", href=f"#norms-{groups[place] + 1}", class_=f"tick {site.action}", tabindex=-1,
            data_group=groups[place], title=_title(site),
        )
        for place, site in enumerate(sites)
    ]  # fmt: skip
    counts = Counter(site.action for site in sites)
    legend = [element("li", mark(action), f"{count} {action}") for action, count in counts.items()]
    ends = element("p", element("span", "input"), element("span", "output"), class_="directions")
    width = f"max-width:{4 * len(sites)}rem"
    picture = element("div", element("div", ticks, class_="ticks"), ends, style=width, aria_hidden="true")
    caption = element("figcaption", element("ul", legend, class_="legend"))
    return element("figure", picture, caption, class_="strip")


def _title(site: Site) -> str:
    code = "" if site.refusal is None else f" ({site.refusal.code})"
    return f"{site.module or '(root)'}: {site.kind}, {site.action}{code}"


def _figures(report: Report) -> dict[str, str]:
    centrings = "explicit centring" if report.centrings == 1 else "explicit centrings"
    worst = max(report.errors.values(), default=0.0)
    return {
        "weights folded": str(report.folded) if report.folded else "",
        centrings: str(report.centrings) if report.centrings else "",
        "of memory beside the originals": shown_bytes(report.copied_bytes) if report.copied_bytes else "",
        "worst error / the original's": f"{worst:.3g}" if worst else "",
    }


def _worth(report: Report) -> Html:
    """What there is to gain and what it costs, as the terminal says it."""
    lines = [*savings(report), *expectation(report), *memory(report)]
    return element("p", " ".join(map(sentence, lines))) if lines else Html("")


def _streams(report: Report, groups: Mapping[int, int]) -> Content:
    """Streams of several norms are drawn each, what single norms read together, the rest is in the table."""
    several = [stream for stream in report.streams if sum(part.role == "norm" for part in stream) > 1]
    single = [stream for stream in report.streams if stream not in several]
    if not report.streams:
        return None
    drawn: list[Content] = [
        element("p", "From top to bottom as the model runs. Open a norm for the reason and the equation.")
    ]
    for number, stream in enumerate(several, 1):
        count = sum(part.role == "norm" for part in stream)
        of = f" {number} of {len(several)}" if len(several) > 1 else ""
        drawn += [
            element("h3", f"Residual stream{of}: {count} norms"),
            drawing(stream, report.sites, groups),
        ]
    if single:
        drawn += [element("h3", "Norms of values of their own"), _chains(single, report, groups)]
    return drawn


def _chains(streams: Sequence[Sequence[Part]], report: Report, groups: Mapping[int, int]) -> Html:
    """Writers, norm and readers of single norms; those of one row of the table, and alike, once."""
    alike: dict[tuple[object, ...], list[tuple[Part, list[Operation]]]] = {}
    for stream in streams:
        norm = next(part for part in stream if part.role == "norm")
        writers = [part.operation for part in stream if part.role == "writer"]
        around = (tuple(starred(one.module) for one in part) for part in (writers, norm.readers))
        key = (groups[norm.site], *around)
        alike.setdefault(key, []).append((norm, writers))
    rows = []
    for found in alike.values():
        first, group = report.sites[found[0][0].site], groups[found[0][0].site]
        name = together([norm.operation for norm, _ in found])
        times = element("span", f"{TIMES}{len(found)}", class_="times") if len(found) > 1 else None
        link = element("a", element("code", name.module or name.operator), href=f"#norms-{group + 1}")
        before = [together([writers[i] for _, writers in found]) for i in range(len(found[0][1]))]
        behind = [together([norm.readers[i] for norm, _ in found]) for i in range(len(found[0][0].readers))]
        steps = [_operations(before), [mark(first.action), link, times], _operations(behind)]
        arrow = element("span", "→", class_="verb")
        shown = [step for step in steps if step]
        rows.append(element("li", [(arrow if i else None, s) for i, s in enumerate(shown)], data_group=group))
    return element("ul", rows, class_="chains")


def _operations(operations: Sequence[Operation]) -> Content:
    if not operations:
        return None
    names = [element("code", one.module or one.operator) for one in operations[:3]]
    return element(
        "span", names, f" and {len(operations) - 3} more" if len(operations) > 3 else None, class_="names"
    )


def _reasons(found: Sequence[Reason], groups: Sequence[Group]) -> Content:
    if not found:
        return None
    named = {id(site): group.name for group in groups for site in group.sites}
    items = []
    for index, reason in enumerate(found):
        names = list(dict.fromkeys(named[id(site)] for site in reason.sites))
        count = len(reason.sites)
        more = len(reason.messages) - 1
        items.append(
            element(
                "li",
                element(
                    "h3", element("code", reason.code), f" · {count} {'norm' if count == 1 else 'norms'}"
                ),
                element("p", sentence(f"{reason.messages[0]}{f' (and {more} like it)' if more else ''}")),
                element("p", element("strong", "Remedy: "), f"{reason.remedy}.") if reason.remedy else None,
                element("p", [element("code", name) for name in names], class_="names quiet"),
                id=reason_anchor(index),
            )
        )
    return element("ul", items, class_="reasons")


def _accuracy(report: Report, verification: str) -> Content:
    said = element("p", sentence(verification)) if verification else None
    inputs = dict.fromkeys((*report.errors, *(name for site in report.sites for name in site.errors)))
    if not inputs:
        return said
    headings = ("inputs", "outputs", "worst norm", "which is")
    return [
        said,
        element("p", "Errors against float64 as ratios to the original's own. The budget is 1.5."),
        plain_table(headings, [_ratios(name, report) for name in inputs]),
    ]


def _ratios(name: str, report: Report) -> tuple[str, str, str, str]:
    outputs = report.errors.get(name)
    shown = "" if outputs is None else f"{outputs:.3g}"
    judged = [site for site in report.sites if name in site.errors]
    if not judged:
        return name, shown, "", ""
    worst = max(judged, key=lambda site: site.errors[name])
    return name, shown, f"{worst.errors[name]:.3g}", worst.module


def _notes(report: Report) -> Content:
    notes = [*report.notes, *(f"graph break {place}" for place in report.breaks)]
    return element("ul", [element("li", note) for note in notes], class_="notes") if notes else None
