"""Write ``docs/rules.md``: ``python -m tests.passes.rules_page``.

Everything on it comes from where it is used: the claims from the rules, the graphs from the golden files, the
codes of reasons from the calls that give them, and what these mean from the README.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

import normfuse
from normfuse.passes.catalogue import RULES, STAGES
from normfuse.passes.rule import Claim, Rule
from tests.passes.golden.cases import FOUND, Golden

__all__ = ["PAGE", "page"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "rules.md"
PACKAGE = Path(normfuse.__file__).parent

_HEAD = """
# The rules

Every change that normfuse makes is made by one of these rules, in this order. A rule is an equation that
holds for every input, with conditions under which the graph is an instance of it; where a condition cannot
be shown, the norm stays and the report says which. `normfuse.only` and `normfuse.skip` take rules by name.

*Rounding* means the same sums, rounded elsewhere; *reassociated* the same number in exact arithmetic by
other sums, judged against float64 ([numerics](numerics.md)); *approximate* another number within a bound,
which only `normfuse.allow` asks for. Each equation is proven with sympy in `tests/proofs`.

In the graphs, `fold` marks what is computed from weights once, and `norm` a norm with its description. This
page is written by `python -m tests.passes.rules_page` from the rules, the graphs that the tests compare
with, and the code that gives reasons.
"""

_STAGES_HEAD = """
## Before the rules

These stages run on every graph and change no value, except that `spell_out` writes a fused layer out by
other sums. Where nothing is changed afterwards, Inductor gets the graph that the model had.
"""


def page() -> str:
    """The text of the page."""
    stages = "\n".join(map(_stage, STAGES))
    return "\n".join([_unwrapped(_HEAD), *map(_rule, RULES), _unwrapped(_STAGES_HEAD), stages, _reasons()])


def _unwrapped(text: str) -> str:
    """Paragraphs in one line each."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")) + "\n"


def _rule(rule: Rule) -> str:
    lines = [f"## {rule.name}", "", _summary(rule), "", f"    {rule.equation}", ""]
    lines += [f"    {form + ':':<8} {equation}" for form, equation in rule.forms.items()]
    lines += [""] if rule.forms else []
    lines += [f"{rule.numerics.value.capitalize()}. Source: {rule.source}.", ""]
    if rule.targets:
        lines += [f"Runs with the target {' or '.join(f'`{name}`' for name in rule.targets)}.", ""]
    lines += ["What has to hold:", "", *(f"- {_sentence(condition)}" for condition in rule.conditions), ""]
    own, asked = _codes(rule.name)
    lines += [f"Reasons of its own why a norm stays: {_listed(own)}.", ""] if own else []
    lines += [f"Reasons of the weights and operators around it: {_listed(asked - own)}.", ""]
    return "\n".join([*lines, *(_example(case) for case in FOUND if case.stage == rule.name)])


def _stage(claim: Claim) -> str:
    source = f" ({claim.source})" if claim.source else ""
    return f"- `{claim.name}`, {claim.numerics.value}: `{claim.equation}`{source}"


def _summary(rule: Rule) -> str:
    """The first sentence of the module's own description."""
    tree = ast.parse(_file(f"normfuse.passes.{rule.name}").read_text(encoding="utf-8"))
    return " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())


def _sentence(condition: str) -> str:
    name, _, rest = condition.partition(": ")
    return f"*{name}*: {rest}." if rest else f"{name}."


def _example(case: Golden) -> str:
    """The graph before and after, without what the page says already."""
    title, _, graphs = case.path.read_text(encoding="utf-8").partition("\n")
    before, after = re.split(r"=== after \w+\n", graphs.split(f"=== before {case.stage}\n")[1])
    blocks = [
        f"{name}:\n\n```text\n{text.strip(chr(10))}\n```\n"
        for name, text in (("Before", before), ("After", after))
    ]
    return "\n".join([f"### {title.rstrip('.')}", "", *blocks])


def _listed(codes: set[str]) -> str:
    return ", ".join(
        f"[`{code}`](#reasons)" if code in _meanings() else f"`{code}`" for code in sorted(codes)
    )


def _codes(rule: str) -> tuple[set[str], set[str]]:
    """The codes that the module of a rule gives, and those of the modules that it uses, one step on."""
    module = f"normfuse.passes.{rule}"
    used = {step for name in _imports(module) for step in (name, *_imports(name))}
    other = {f"normfuse.passes.{one.name}" for one in RULES}
    return _given(module), set().union(*(_given(name) for name in used - other))


@cache
def _given(module: str) -> frozenset[str]:
    """The codes in calls of ``Refusal`` and of ``block``, which makes one of the table's."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(_file(module).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        at = {"Refusal": 0, "block": 1}.get(name)
        given = [*node.args[at : at + 1]] if at is not None else []
        given += [keyword.value for keyword in node.keywords if at is not None and keyword.arg == "code"]
        found |= {str(one.value) for one in given if isinstance(one, ast.Constant)}
    return frozenset(found)


@cache
def _imports(module: str) -> frozenset[str]:
    """The modules of the passes and of the analysis that a module imports."""
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    near = {n for n in found if n.startswith(("normfuse.analysis.", "normfuse.passes."))}
    return frozenset(name for name in near if _file(name).is_file())


def _file(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


@cache
def _meanings() -> dict[str, str]:
    """The rows of the README's table of codes, by each code."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (`.*?) \| (.*) \|$", text.split("| code | why |\n|---|---|\n")[1].split("\n\n")[0], re.M
    )
    return {code: why for codes, why in rows for code in re.findall(r"`(\w+)`", codes)}


def _reasons() -> str:
    meanings = {
        code: why.replace("](docs/", "](").replace("[docs/", "[") for code, why in _meanings().items()
    }
    rows = [f"| `{code}` | {why} |" for code, why in meanings.items()]
    head = ["", "## Reasons", "", "| code | why the norm stays |", "|---|---|"]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE.name}\n")
