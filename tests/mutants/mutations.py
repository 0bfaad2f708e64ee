"""Mutants of the code that decides: one for each precondition, found in the source so that none is missed.

* a guard ``if a or b: return refusal`` is dropped, clause by clause;
* a condition ``carries if a and b else refusal`` is taken for granted, clause by clause, and so is a
  clause of ``return a and b``;
* each row of the operator table answers for the axis before the one it was asked about.

Clauses that only ask whether something is known at all (``x is None``, ``isinstance``) are left out: without
them the code raises, and the graph goes on unchanged.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import normfuse
from normfuse.rule_names import RULE_NAMES

__all__ = ["MODULES", "ROW_MODULES", "Mutant", "functions_of", "mutants", "row_functions"]

PACKAGE = Path(normfuse.__file__).parent
ROW_MODULES = ("rows_elementwise", "rows_indexed", "rows_layout", "rows_linear", "rows_reduce")
FROZEN = ("call", "decide", "gain", "library", "others", "products", "room", "settled", "steadiness")
MODULES = (
    *(f"analysis.{name}" for name in ROW_MODULES), "analysis.operator_table", "analysis.contraction",
    "analysis.absorb", "analysis.rebuild", "analysis.as_it_is", "analysis.forward", "analysis.reads",
    "analysis.beside", "analysis.own_tap", "analysis.sums", "analysis.stream", "analysis.exactness",
    "analysis.ranges", "analysis.parts", "analysis.axis_ranges", "analysis.centring", "analysis.dirt",
    "analysis.weights", "analysis.weight_memory", "analysis.factors",
    "analysis.spread_map", "analysis.own_centring", "analysis.over_sums",
    "analysis.attention", "analysis.places", "analysis.row_scale", "analysis.scores",
    "analysis.together", "analysis.resize", "ir.span", "passes.basis", "passes.change_basis",
    "passes.canonicalize", "passes.functionalize", "passes.lift", *(f"passes.{rule}" for rule in RULE_NAMES),
    "passes.scaled_norms", "passes.affine_moves", "passes.own_affine", "passes.own_factor",
    "passes.into_neighbours", "passes.stored_conditions", "passes.idle", "passes.policy",
    "passes.centrings", "passes.shared_cores",
    "passes.ownership", "passes.settle_shifts", "passes.stored_values",
    "passes.premises", "passes.decisions",
    "passes.spreads", "patterns.around", "ir.moves",
    "folding.precision", "folding.premise", "folding.conditions", "ir.effects", "ir.readers",
    "folding.contents", "folding.sampled", "folding.writers", "lowering.choose", "lowering.kernel",
    *(f"freezing.{name}" for name in FROZEN),
)  # fmt: skip
"""Where the rules and the table decide, what they all ask of a graph, and what is frozen and watched."""
_REFUSALS = ("block(", "_torn(", "_mixed(", "_reduces(", "_per_row(", "unknown(", "Refusal")


@dataclass(frozen=True)
class Mutant:
    """One change of one module; ``name`` says where and what, without line numbers, so that it lasts."""

    module: str
    name: str
    source: str


class _Site:
    """A node to put something else in place of."""

    def __init__(self, function: str, what: str, node: ast.expr, value: bool) -> None:
        self.function, self.what, self.node, self.value = function, what, node, value


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, in the order of its source."""
    text = (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    found = [_applied(module, tree, site) for site in _sites(tree)]
    rows = row_functions(tree) if module.split(".")[-1] in ROW_MODULES else []
    found += [_other_axis(module, tree, function) for function in rows]
    return _numbered(found)


def functions_of(tree: ast.Module) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]


def row_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """The functions that answer for operators."""
    return [f for f in functions_of(tree) if any(_is_row(d) for d in f.decorator_list)]


def _is_row(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") in ("row", "contracts")


def _sites(tree: ast.Module) -> Iterator[_Site]:
    for function in functions_of(tree):
        for node in ast.walk(function):
            if isinstance(node, ast.If) and _leaves(node.body):
                yield from _clauses(function.name, node.test, ast.Or, False)
            elif isinstance(node, ast.IfExp):
                refuses_first = _refuses(node.body) and not _refuses(node.orelse)
                kind, value = (ast.Or, False) if refuses_first else (ast.And, True)
                if _refuses(node.body) != _refuses(node.orelse):
                    yield from _clauses(function.name, node.test, kind, value)
            elif _returns_a_conjunction(node):
                yield from _clauses(function.name, node.value, ast.And, True)


def _returns_a_conjunction(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Return) else None
    return isinstance(value, ast.BoolOp) and isinstance(value.op, ast.And)


def _clauses(function: str, test: ast.expr, kind: type, value: bool) -> Iterator[_Site]:
    split = isinstance(test, ast.BoolOp) and isinstance(test.op, kind)
    for clause in test.values if split else [test]:  # type: ignore[attr-defined]
        if not _asks_whether_known(clause):
            yield _Site(
                function, f"{'granted' if value else 'without'}: {ast.unparse(clause)}", clause, value
            )


def _asks_whether_known(clause: ast.expr) -> bool:
    """Whether a clause is ``x is None`` or ``isinstance``, which the types ask for."""
    text = ast.unparse(clause)
    return text.endswith((" is None", " is not None")) or "isinstance(" in text


def _leaves(body: list[ast.stmt]) -> bool:
    """Whether a guard's body refuses, or passes over something."""
    last = body[-1]
    return isinstance(last, (ast.Continue, ast.Raise)) or (isinstance(last, ast.Return) and len(body) <= 2)


def _refuses(value: ast.expr) -> bool:
    text = ast.unparse(value)
    return text == "None" or text.startswith(
        ("block(", "_mixed(", "_reduces(", "_per_row(", "unknown(", "Refusal")
    )


def _applied(module: str, tree: ast.Module, site: _Site) -> Mutant:
    replacement = ast.copy_location(ast.Constant(site.value), site.node)

    class Swap(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return replacement if node is site.node else self.generic_visit(_shallow(node))

    return Mutant(
        module, f"{site.function} {site.what}", ast.unparse(ast.fix_missing_locations(Swap().visit(tree)))
    )


def _shallow(node: ast.AST) -> ast.AST:
    """A copy whose lists may be edited: the original tree serves every mutant."""
    fields = {k: list(v) if isinstance(v, list) else v for k, v in ast.iter_fields(node)}
    return ast.copy_location(type(node)(**fields), node) if hasattr(node, "lineno") else type(node)(**fields)


def _turn_letters(function: ast.FunctionDef) -> None:
    """Let a contraction's result have its axes in another order."""
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and node.value is not None:
            text = f"(lambda c: c and replace(c, out=c.out[1:] + c.out[:1]))({ast.unparse(node.value)})"
            node.value = ast.parse(text, mode="eval").body


def _other_axis(module: str, tree: ast.Module, function: ast.FunctionDef) -> Mutant:
    text = ast.unparse(tree)
    copy = ast.parse(text)
    (twin,) = [f for f in functions_of(copy) if f.name == function.name]
    first = 1 if isinstance(twin.body[0], ast.Expr) and len(twin.body) > 1 else 0
    if any(argument.arg == "axis" for argument in twin.args.args):
        twin.body.insert(first, ast.parse("axis = max(axis - 1, 0)").body[0])
    else:
        _turn_letters(twin)
    return Mutant(
        module, f"{function.name} answers for another axis", ast.unparse(ast.fix_missing_locations(copy))
    )


def _numbered(found: list[Mutant]) -> list[Mutant]:
    """Equal names get a number."""
    seen: dict[str, int] = {}
    result = []
    for mutant in found:
        seen[mutant.name] = seen.get(mutant.name, 0) + 1
        again = f" ({seen[mutant.name]})" if seen[mutant.name] > 1 else ""
        result.append(Mutant(mutant.module, mutant.name + again, mutant.source))
    return result
