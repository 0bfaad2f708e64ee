"""The norms as a table: equal outcomes in one row, which opens to what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normfuse.page.elements import Content, Html, element, joined
from normfuse.report_table import Group, Reason

if TYPE_CHECKING:
    from normfuse.report import Refusal, Rewrite, Site

__all__ = ["TIMES", "claim", "mark", "reason_anchor", "table"]

TIMES = "\N{MULTIPLICATION SIGN}"
_SHOWN = 12
#: What a description says unless it says otherwise.
_USUAL = {
    "has_scale": False, "has_shift": False, "eps_mode": "inside", "divisor": None, "statistics": "input",
    "groups": 1, "weight_offset": 0.0, "post_factor": 1.0, "affine_dims": [], "statistics_dtype": None,
    "factor_dtype": None, "returns": "value", "stored": [], "basis": "",
}  # fmt: skip
_DTYPES = ("source_dtype", "compute_dtype", "scale_dtype", "out_dtype")


def table(groups: Sequence[Group], found: Sequence[Reason]) -> Content:
    """The filters and the table; ``found`` are the reasons, to which rows point by their place."""
    actions = dict.fromkeys(group.sites[0].action for group in groups)
    anchors = {id(site): index for index, reason in enumerate(found) for site in reason.sites}
    headings = ("norms", "found as", "becomes", "action", "why")
    return [
        _filters([*actions]),
        element(
            "table",
            element("thead", element("tr", [element("th", name, scope="col") for name in headings])),
            [_rows(index, group, anchors.get(id(group.sites[0]))) for index, group in enumerate(groups)],
            class_="sites",
        ),
    ]


def mark(action: str) -> Html:
    """The sign of an outcome: its shape tells it too, not its colour alone."""
    return element("span", class_=f"mark {action}", aria_hidden="true")


def reason_anchor(index: int) -> str:
    """Where a reason stands, by its place."""
    return f"reason-{index + 1}"


def claim(rewrite: Rewrite, *evidence: Content) -> Html:
    """What a rule says, who said it first, and, where it is given, what it rests on here."""
    held = rewrite.certificate
    return element(
        "div",
        element("p", element("strong", rewrite.rule), f" · {held.get('numerics', '')}"),
        element("pre", element("code", held.get("equation", ""))),
        element("p", held.get("source", ""), class_="quiet"),
        evidence,
        class_="rule",
    )


def _certificate(rewrite: Rewrite) -> Html:
    """The claim of a rule with the nodes that its conditions rest on, and the weights that change."""
    held = rewrite.certificate
    weights = [str(weight["name"]) for weight in held.get("weights", ())]
    conditions = [
        element("li", condition["condition"], _names(condition["nodes"]))
        for condition in held.get("conditions", ())
    ]
    centred = held.get("centred_explicitly", ())
    change = f"{len(weights)} {'weight changes' if len(weights) == 1 else 'weights change'}: "
    return claim(
        rewrite,
        element("ul", conditions) if conditions else None,
        element("p", change, _names(weights)) if weights else None,
        element("p", "One mean is subtracted in the graph, behind ", _names(centred)) if centred else None,
    )


def _filters(actions: Sequence[str]) -> Html:
    toggles = [
        element(
            "label",
            element("input", type="checkbox", name="action", value=action, checked=True),
            mark(action),
            action,
        )
        for action in actions
    ]
    words = element("input", type="search", name="words", placeholder="name, kind or reason")
    return element(
        "form",
        element("fieldset", element("legend", "Show"), toggles),
        element("label", element("span", "Find"), words, class_="find"),
        element("output", aria_live="polite"),
        class_="filters",
    )


def _rows(index: int, group: Group, reason: int | None) -> Html:
    site, count = group.sites[0], len(group.sites)
    about = f"norms-{index + 1}-more"
    times = element("span", f"{TIMES}{count}", class_="times") if count > 1 else None
    button = element(
        "button",
        mark(site.action), element("code", group.name), times,
        type="button", class_="more", aria_expanded="false", aria_controls=about,
    )  # fmt: skip
    why = _why(site, reason)
    row = element(
        "tr",
        element("th", button, scope="row"),
        _cell("found as", element("code", site.kind)),
        _cell("becomes", element("code", site.becomes) if site.becomes else element("span", "nothing")),
        _cell("action", element("span", site.action)),
        _cell("why", why),
    )
    words = " ".join((group.name, site.kind, site.becomes, *site.rules, *_texts(site.refusal)))
    more = element("tr", element("td", _about(group), colspan=5), id=about, class_="about")
    return element(
        "tbody", row, more, id=f"norms-{index + 1}", class_="group", data_group=index,
        data_action=site.action, data_count=count, data_words=words,
    )  # fmt: skip


def _cell(name: str, *content: Content) -> Html:
    """``name`` is shown where the screen is too narrow for columns."""
    return element("td", content, data_label=name)


def _why(site: Site, reason: int | None) -> Html:
    """The rules that changed it, and the reason why it is not something else."""
    rules = [element("code", rule) for rule in site.rules]
    stays = reason is not None and site.refusal is not None
    code = element("code", site.refusal.code if site.refusal is not None else "")
    link = element("a", code, href=f"#{reason_anchor(reason or 0)}") if stays else None
    return element("span", element("span", rules, class_="names"), " " if rules else None, link)


def _texts(refusal: Refusal | None) -> tuple[str, ...]:
    return () if refusal is None else (refusal.code, refusal.message)


def _about(group: Group) -> Html:
    site = group.sites[0]
    facts: dict[str, Content] = {
        "description": element("code", _described(site.spec)),
        "spelled as": element("code", site.spelling) if site.spelling else None,
        "source": _sources(group.sites),
        "stays because": None if site.refusal is None else _refused(site.refusal),
        "changed by": [_certificate(rewrite) for rewrite in site.rewrites],
        "left by": [_refused(why, rule) for rule, why in site.refusals.items() if why != site.refusal],
        "error / original's": _errors(group.sites),
        "its result": f"{site.modulation} by data" if site.modulation else None,
        "runs as": site.lowering if site.becomes else None,
        "all of them": _names([member.module for member in group.sites]) if len(group.sites) > 1 else None,
    }
    shown = [(name, joined(value)) for name, value in facts.items()]
    return element("dl", [(element("dt", name), element("dd", value)) for name, value in shown if value])


def _described(spec: Mapping[str, Any]) -> str:
    """The description without what is usual, and with one dtype where all are the same."""
    dtypes = {spec[name] for name in _DTYPES if name in spec}
    left_out = {"kind", *(_DTYPES if len(dtypes) == 1 else ())}
    said = [
        f"{name}={value}"
        for name, value in spec.items()
        if name not in left_out and not (name in _USUAL and value == _USUAL[name])
    ]
    return ", ".join([*said, *(f"dtype={dtype}" for dtype in dtypes if len(dtypes) == 1)])


def _sources(sites: Sequence[Site]) -> Content:
    places = list(dict.fromkeys(site.source for site in sites if site.source))
    return [element("code", place, class_="place") for place in places[:_SHOWN]]


def _refused(refusal: Refusal, rule: str = "") -> Html:
    return element(
        "p",
        [element("strong", rule), ": "] if rule else None,
        element("code", refusal.code), f": {refusal.message}.",
        [element("em", " Remedy: "), f"{refusal.remedy}."] if refusal.remedy else None,
        [" At ", element("code", refusal.node), "."] if refusal.node else None,
    )  # fmt: skip


def _errors(sites: Sequence[Site]) -> Content:
    """The worst of the group by inputs."""
    inputs = dict.fromkeys(name for site in sites for name in site.errors)
    worst = {name: max(site.errors.get(name, 0.0) for site in sites) for name in inputs}
    return ", ".join(f"{ratio:.3g} ({name})" for name, ratio in worst.items()) or None


def _names(names: Sequence[str]) -> Html:
    shown = [element("code", name or "(root)") for name in names[:_SHOWN]]
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else None
    return element("span", shown, rest, class_="names")
