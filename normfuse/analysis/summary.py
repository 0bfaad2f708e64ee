"""The operator table for people: which operators pass, absorb or block which maps.

What is said here about each row is checked against the rows themselves by the tests.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

from normfuse.analysis import rows_elementwise, rows_indexed, rows_layout, rows_linear, rows_reduce
from normfuse.analysis.flow import Flow
from normfuse.analysis.operator_table import ROWS

__all__ = ["HEADINGS", "Line", "lines", "markdown"]

HEADINGS = ("operators", "centring", "scale per channel", "shift per channel", "as a reader", "how")
PASSES, ABSORBS, BLOCKS, JOINS = "passes", "absorbs", "blocks", "joins the map"


@dataclass(frozen=True)
class Line:
    """What one row does with a map that comes from its output, and one that comes from an operand."""

    operators: tuple[str, ...]
    centre: str
    diagonal: str
    shift: str
    reads: str
    how: str


@dataclass(frozen=True)
class _Note:
    how: str
    centre: str = PASSES
    diagonal: str = PASSES
    shift: str = PASSES
    reads: str = PASSES


_NOTES: dict[Callable[..., Flow], _Note] = {
    rows_elementwise._sum: _Note("every term is mapped, one of them shifted", shift=ABSORBS, reads=BLOCKS),
    rows_elementwise._product: _Note(
        "one factor per token passes; one per channel, or a number ahead of a shift, joins the map",
        diagonal=JOINS, shift=JOINS, reads="passes a number",
    ),
    rows_elementwise._between: _Note("by one share per token", reads=BLOCKS),
    rows_elementwise._times_number: _Note("a number ahead of a shift joins the map", shift=JOINS),
    rows_elementwise._negated: _Note("the sign ahead of a shift joins the map", shift=JOINS),
    rows_elementwise._same_axes: _Note("the value as it is"),
    rows_elementwise._cast: _Note("between floating types"),
    rows_elementwise._dropout: _Note("in evaluation; in training it blocks"),
    rows_layout._reshape: _Note("where the channels stay one axis, or become one, as those of a head do"),
    rows_layout._permute: _Note("the axis moves"),
    rows_layout._transpose: _Note("the axis moves"),
    rows_layout._flip: _Note("the axis moves"),
    rows_layout._movedim: _Note("the axis moves"),
    rows_layout._expand: _Note("along other axes than the channels"),
    rows_layout._repeat: _Note("along other axes than the channels"),
    rows_layout._select: _Note("along other axes than the channels"),
    rows_layout._along: _Note("along other axes than the channels; a range of them that is read apart"),
    rows_layout._cat: _Note("along other axes than the channels; joined channels pass no centring"),
    rows_layout._pad: _Note("along other axes than the channels; padded zeros pass no shift"),
    rows_layout._index: _Note("other axes"),
    rows_layout._split: _Note("along other axes than the channels; a range of them that is read apart"),
    rows_layout._part: _Note("one part of a split"),
    rows_linear._linear: _Note("weight and bias, which may be new", *(ABSORBS,) * 4),
    rows_linear._addmm: _Note("weight and bias", ABSORBS, ABSORBS, ABSORBS, ABSORBS),
    rows_linear._matmul: _Note("either operand; it has no bias", ABSORBS, ABSORBS, BLOCKS, "absorbs a scale"),
    rows_linear._grouped: _Note("the matrices of all experts", ABSORBS, ABSORBS, BLOCKS, "absorbs a scale"),
    rows_linear._grouped_by_name: _Note(
        "the same in models of transformers", ABSORBS, ABSORBS, BLOCKS, "absorbs a scale"
    ),
    rows_linear._einsum: _Note(
        "the one operand with the channels' letter", ABSORBS, ABSORBS, BLOCKS, "absorbs a scale"
    ),
    rows_linear._conv: _Note(
        "weight and bias; grouped, no centring; a reader that pads with zeros takes no shift",
        ABSORBS, ABSORBS, ABSORBS, ABSORBS,
    ),
    rows_linear._conv_transpose: _Note(
        "weight and bias; grouped, no centring", ABSORBS, ABSORBS, ABSORBS, "absorbs a scale"
    ),
    rows_linear._convolution: _Note("as the two above", ABSORBS, ABSORBS, ABSORBS, ABSORBS),
    rows_linear._embedding: _Note(
        "offline; compiled, the table would be held twice", ABSORBS, ABSORBS, ABSORBS, BLOCKS
    ),
    rows_reduce._reduce: _Note("over other axes than the channels; a sum passes no shift"),
    rows_reduce._resample: _Note("zeros that are counted, or a divisor, pass no shift"),
    rows_reduce._masked_fill: _Note("whole tokens set to zero", shift=BLOCKS, reads="passes a scale"),
    rows_reduce._where: _Note("a choice between whole tokens", reads=BLOCKS),
    rows_indexed._index_add: _Note("of whole tokens", shift=ABSORBS, reads=BLOCKS),
    rows_indexed._index_copy: _Note("of whole tokens", reads=BLOCKS),
    rows_indexed._index_put: _Note("of whole tokens, with channels in the last axis", reads=BLOCKS),
    rows_indexed._masked_scatter: _Note("the same by a mask with one entry for all channels", reads=BLOCKS),
}  # fmt: skip


def lines() -> list[Line]:
    """One line for each row of the table, in the order in which the rows are written."""
    found: list[Line] = []
    for row, note in _NOTES.items():
        names = tuple(dict.fromkeys(_name(t) for t, made in ROWS.items() if made is row))
        found.append(Line(names, note.centre, note.diagonal, note.shift, note.reads, note.how))
    return found


def _name(target: object) -> str:
    text = target.__name__ if target is operator.getitem else str(target)
    return text.removeprefix("aten.").removesuffix(".default")


def markdown() -> str:
    """The table as a page."""
    rows = [
        (
            ", ".join(f"`{n}`" for n in line.operators),
            line.centre,
            line.diagonal,
            line.shift,
            line.reads,
            line.how,
        )
        for line in lines()
    ]
    table = "\n".join(
        "| " + " | ".join(cells) + " |" for cells in (HEADINGS, ("---",) * len(HEADINGS), *rows)
    )
    return f"{_INTRODUCTION}\n{table}\n\n{_CLOSING}"


_INTRODUCTION = """# The operator table

Printed by `python -m normfuse.analysis --markdown`.

A map comes from a norm: *centring* from a LayerNorm, a *scale* and a *shift* per channel from a norm with
stored statistics. Pushed backward, it goes through the operators that wrote the value until weights absorb
it; pushed forward (*as a reader*), through those that read it.

- *passes*: the operator commutes with the map, which goes on at its operands.
- *absorbs*: a weight or bias takes the map.
- *joins the map*: the operator disappears into it.
- *blocks*: the norm stays, and the report names the operator.
"""
_CLOSING = """Every other operator blocks, with the code `nonlinear_writer` behind the norm's input and
`nonlinear_reader` behind its output. A value that anything else reads blocks with `raw_reader`.
"""
