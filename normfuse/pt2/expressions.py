"""The expressions over sizes inside a program file, which PyTorch evaluates as Python when it reads one.

``2*s0``, ``Symbol('s0', integer=True)`` and ``L['x'].size()[0] <= 8`` are harmless; a file from
elsewhere could hold any expression, so only arithmetic, comparisons and known names are let through.
"""

from __future__ import annotations

import ast
import re

from normfuse.torch_compat import size_functions

__all__ = ["is_guard", "is_size"]

_FUNCTIONS = size_functions() | {
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Min", "Max", "Abs", "floor", "ceiling",
    "Eq", "Ne", "Equality", "Unequality", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Piecewise",
    "LessThan", "GreaterThan", "StrictLessThan", "StrictGreaterThan", "ITE", "BooleanTrue", "BooleanFalse",
    "sqrt", "int", "float", "bool", "max", "min", "abs", "not_", "cast_symbool_to_symint_guardless",
}  # fmt: skip
_GRAMMAR = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Call, ast.keyword, ast.Tuple, ast.IfExp,
)  # fmt: skip
_GUARD_GRAMMAR = (*_GRAMMAR, ast.Subscript, ast.Attribute, ast.Slice)
#: Names of symbols and keys of inputs; no quote or backslash, since guards are pasted into source text.
_STRING = re.compile(r"[\w .:/-]*")
#: What a guard may ask of an input, and of ``math``.
_QUESTIONS = {
    "size", "stride", "storage_offset", "dim", "dtype", "device", "shape", "requires_grad", "item",
    "trunc", "sqrt", "floor", "ceil", "isnan", "isinf",
}  # fmt: skip


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
        called = node.func
        return isinstance(called, ast.Attribute) or (isinstance(called, ast.Name) and called.id in _FUNCTIONS)
    if isinstance(node, ast.Attribute):
        return node.attr in _QUESTIONS
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _STRING.fullmatch(node.value) is not None
    return True
