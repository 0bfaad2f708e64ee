"""Which parts of one piece of memory may show the same entry."""

from __future__ import annotations

import pytest
import torch

from normfuse.ir.span import Span, shares_memory

WHOLE = torch.arange(24.0).reshape(6, 4)
#: Views, and whether each shares an entry with the others before it.
VIEWS = {
    "two rows": (WHOLE[:2], []),
    "the next row": (WHOLE[2:3], []),
    "a row of both": (WHOLE[1:3], ["two rows", "the next row"]),
    "turned": (WHOLE[3:].t(), []),
    "one entry": (WHOLE[3, 0], ["turned"]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_parts_overlap_where_they_share_an_entry(name: str) -> None:
    view, others = VIEWS[name]
    before = list(VIEWS)[: list(VIEWS).index(name)]
    found = [one for one in before if Span.of(1, view).overlaps(Span.of(1, VIEWS[one][0]))]
    assert found == others
    assert Span.of(1, view).overlaps(Span.of(1, WHOLE))
    assert not Span.of(1, view).overlaps(Span.of(2, view))


def test_what_lies_between_the_first_and_the_last_entry_counts() -> None:
    assert Span.of(1, WHOLE[:, :2]).overlaps(Span.of(1, WHOLE[:, 2:]))


def test_of_what_cannot_be_named_everything_overlaps() -> None:
    assert Span.of(1, WHOLE.to_sparse()).overlaps(Span.of(1, WHOLE[:1]))
    assert Span.of(1, WHOLE[:0]).overlaps(Span.of(1, WHOLE[:1]))


def test_a_view_of_another_dtype_counts_other_entries() -> None:
    assert shares_memory(WHOLE, WHOLE[1:])
    assert not shares_memory(WHOLE, WHOLE.clone())
    assert not shares_memory(WHOLE, WHOLE.view(torch.int32))
    assert not shares_memory(WHOLE, WHOLE.to_sparse())
