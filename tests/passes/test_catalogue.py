"""No rule without its source, its conditions, a proof, a place in the fuzzer and mutants of its code."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from normfuse.cli.app import app
from normfuse.options import Options
from normfuse.passes import __main__ as table
from normfuse.passes.catalogue import CATALOGUE, RULES
from normfuse.passes.rule import Numerics, Rule
from normfuse.rule_names import RULE_NAMES
from tests.fuzz.properties import FIRES
from tests.mutants.mutations import MODULES, mutants
from tests.passes.golden.cases import FOUND
from tests.proofs import stored
from tests.proofs.identities import PROOFS

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- rules: python -m normfuse.passes --markdown -->\n", "<!-- end of rules -->"
assert stored.Stored  # registers its proofs


def lacking(rule: Rule) -> list[str]:
    """What a rule does not have, of all that each has to have."""
    module = f"passes.{rule.name}"
    has = {
        "a source": bool(rule.source),
        "an equation": bool(rule.equation),
        "conditions": bool(rule.conditions),
        "a proof": bool(PROOFS.get(rule.name)),
        "a count in the fuzzer": rule.name in FIRES,
        "mutants": module in MODULES and bool(mutants(module)),
        "a name that options know": rule.name in RULE_NAMES,
        "a certificate": CATALOGUE.get(rule.name) is rule,
        "a graph before and after": rule.name in {case.stage for case in FOUND},
    }
    return [what for what, is_there in has.items() if not is_there]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_has_all_that_a_rule_has_to_have(rule: Rule) -> None:
    assert lacking(rule) == []
    assert all(": " in condition for condition in rule.conditions)
    assert Options.checked({"only": [rule.name]}).runs(rule.name)


def test_what_a_rule_lacks_is_named() -> None:
    guess = Rule("guess", Numerics.ROUNDING, "", run=lambda work: None, waits=lambda site: False)
    assert lacking(guess) == [
        "a source", "an equation", "conditions", "a proof", "a count in the fuzzer", "mutants",
        "a name that options know", "a certificate", "a graph before and after",
    ]  # fmt: skip


def test_the_rules_stand_in_the_order_of_their_names() -> None:
    assert tuple(rule.name for rule in RULES) == RULE_NAMES


@pytest.mark.parametrize("command", ["explain", "rewrite"])
def test_the_command_line_offers_every_rule(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--only", "no_such_rule", "x"]).output
    assert all(name in shown.replace("\n", "") for name in RULE_NAMES)


def test_the_table_has_a_row_for_every_rule() -> None:
    text = table.markdown()
    rows = text.splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(RULE_NAMES)
    for rule, row in zip(RULES, rows, strict=True):
        assert rule.source in row
        assert rule.numerics.value in row
        assert all(equation in row for equation in (rule.equation, *rule.forms.values()))
    assert {row.count(" | ") for row in text.splitlines()} == {len(table.HEADINGS) - 1}


def test_the_readme_has_the_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if BEGIN not in readme:
        pytest.skip("the README has no table of rules yet")
    assert readme.split(BEGIN)[1].split(END)[0] == table.markdown()
