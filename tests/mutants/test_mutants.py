"""The list of mutants is complete and current, and the runner tells the dead from the living."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from normfuse.analysis.operator_table import ROWS
from normfuse.rule_names import RULE_NAMES
from tests.mutants.mutations import MODULES, PACKAGE, ROW_MODULES, mutants, row_functions
from tests.mutants.runner import explained, is_killed


@cache
def made(module):
    return mutants(module)


def source(module):
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def without_mutants(found):
    """Rules and rows that nothing would be tried on."""
    missing = {f"passes.{rule}" for rule in RULE_NAMES} - {module for module, made in found.items() if made}
    for name in ROW_MODULES:
        module = f"analysis.{name}"
        named = {mutant.name.split()[0] for mutant in found.get(module, ())}
        missing |= {f.name for f in row_functions(ast.parse(source(module)))} - named
    return missing


def test_every_rule_and_every_row_has_mutants():
    every = {module: made(module) for module in MODULES}
    assert without_mutants(every) == set()
    assert without_mutants({**every, "analysis.rows_linear": []}) >= {"_linear", "_conv", "_embedding"}
    assert without_mutants({**every, "passes.recentre": []}) == {"passes.recentre"}


def test_every_row_of_the_table_is_in_a_module_that_is_mutated():
    modules = {row.__module__.removeprefix("normfuse.") for row in ROWS.values()}
    assert modules <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_mutants_are_programs_that_differ_from_the_original(module):
    original = ast.unparse(ast.parse(source(module)))
    found = made(module)
    assert len({m.name for m in found}) == len(found)
    for mutant in found:
        compile(mutant.source, module, "exec")
        assert mutant.source != original, mutant.name


def test_survivors_are_mutants_and_every_one_has_a_reason():
    names = {f"{m.module}: {m.name}" for module in MODULES for m in made(module)}
    assert set(explained()) <= names
    assert all(len(reason) > 20 for reason in explained().values())


@pytest.mark.slow
def test_the_runner_tells_a_wrong_row_from_the_original():
    suite = (["tests/analysis/test_operator_table.py", "-k", "linear"],)
    module = "analysis.rows_linear"
    (wrong,) = [m for m in made(module) if m.name == "_linear answers for another axis"]
    assert is_killed(module, wrong.source, suite)
    assert not is_killed(module, source(module), suite)
