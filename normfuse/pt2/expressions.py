"""The expressions over sizes inside a program file, which PyTorch evaluates as Python when it reads one.

``2*s0``, ``Symbol('s0', integer=True)`` and ``L['x'].size()[0] <= 8`` are harmless; a file from
elsewhere could hold any expression, so only arithmetic, comparisons and known names are let through.
"""

from __future__ import annotations

import ast
import math
import re

from normfuse.torch_compat import number_functions, size_functions

__all__ = ["is_guard", "is_size"]

_FUNCTIONS = size_functions() | {
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Min", "Max", "Abs", "floor", "ceiling",
    "Eq", "Ne", "Equality", "Unequality", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Piecewise",
    "LessThan", "GreaterThan", "StrictLessThan", "StrictGreaterThan", "ITE", "Xor", "BooleanTrue",
    "BooleanFalse", "ExprCondPair", "sqrt", "int", "float", "bool", "max", "min", "abs", "round", "not_",
    "cast_symbool_to_symint_guardless",
}  # fmt: skip
_GRAMMAR = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Call, ast.keyword, ast.Tuple, ast.IfExp,
)  # fmt: skip
_GUARD_GRAMMAR = (*_GRAMMAR, ast.Subscript, ast.Attribute, ast.Slice)
#: Names of symbols and keys of inputs; no quote or backslash, since guards are pasted into source text.
_STRING = re.compile(r"[\w .:/-]*")
#: What a guard may call on an input.
_METHODS = {"size", "stride", "storage_offset", "dim", "item"}
#: What it may take from the modules that it can name.
_MODULES = {
    "math": {name for name in vars(math) if not name.startswith("_")},
    "torch": number_functions(),
}
_INPUTS = "L"


def is_size(text: object) -> bool:
    """Whether ``text`` is arithmetic over symbols and nothing else."""
    tree = _parsed(text)
    return tree is not None and all(isinstance(n, _GRAMMAR) and _is_plain(n) for n in ast.walk(tree))


def is_guard(text: object) -> bool:
    """Whether ``text`` compares sizes and values of inputs and does nothing else."""
    tree = _parsed(text)
    return tree is not None and all(isinstance(n, _GUARD_GRAMMAR) and _is_plain(n) for n in ast.walk(tree))


def _parsed(text: object) -> ast.AST | None:
    if not isinstance(text, str) or len(text) > 10_000:
        return None
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_plain(node: ast.AST) -> bool:
    """Whether this node alone is harmless; its children are looked at in turn."""
    if isinstance(node, ast.Call):
        return _may_be_called(node.func)
    if isinstance(node, ast.Attribute):
        return "__" not in node.attr and (_root(node) == _INPUTS or _is_function(node))
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _STRING.fullmatch(node.value) is not None
    return True


def _may_be_called(called: ast.expr) -> bool:
    if isinstance(called, ast.Name):
        return called.id in _FUNCTIONS
    return isinstance(called, ast.Attribute) and (called.attr in _METHODS or _is_function(called))


def _is_function(node: ast.Attribute) -> bool:
    """``math.floor``, ``torch.sym_min`` and what else computes with numbers."""
    return isinstance(node.value, ast.Name) and node.attr in _MODULES.get(node.value.id, ())


def _root(node: ast.expr) -> str | None:
    """``L`` of ``L['x'].hidden[0].size()``."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None
