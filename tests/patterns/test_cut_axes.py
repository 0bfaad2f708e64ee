"""Moves around a stored norm that cut axes, as into images, volumes, heads and windows, go with it too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import normfuse
from normfuse.ir.factors import common_factors
from tests.passes.building import distance
from tests.patterns.test_around import EXACT, MOVES, Form, Net

#: A skip that stands outside of the moves, and one between them.
Skip = Callable[[Net, Tensor, Form], Tensor]
HEIGHT, WIDTH, DEPTH = 4, 9, 2


def norm(self: Net, x: Tensor) -> Tensor:
    return F.batch_norm(x, *self.statistics)


def image(self: Net, x: Tensor) -> Tensor:
    y = norm(self, x.transpose(1, 2).reshape(x.shape[0], 6, HEIGHT, -1))
    return y.flatten(2).transpose(1, 2)


def square(self: Net, x: Tensor) -> Tensor:
    """Both sides of the image are as many as the channels."""
    return norm(self, x.mT.unflatten(2, (6, 6))).reshape(-1, 6, 36).mT


def channels_last(self: Net, x: Tensor) -> Tensor:
    y = x.view(x.shape[0], HEIGHT, -1, 6).permute(0, 3, 1, 2).contiguous()
    return norm(self, y).permute(0, 2, 3, 1).reshape(x.shape)


def rows(self: Net, x: Tensor) -> Tensor:
    """A batch of rows of an image."""
    y = norm(self, x.reshape(-1, WIDTH, 6).transpose(1, 2))
    return y.transpose(1, 2).reshape(x.shape)


def volume(self: Net, x: Tensor) -> Tensor:
    y = x.transpose(1, 2).reshape(x.shape[0], 6, DEPTH, HEIGHT // DEPTH, -1)
    return norm(self, y).flatten(2).permute(0, 2, 1)


def windows(self: Net, x: Tensor) -> Tensor:
    """Windows of 2 x 3 (Swin), as tokens of their own, and back."""
    b, h, w = x.shape[0], HEIGHT // 2, WIDTH // 3
    y = x.view(b, h, 2, w, 3, 6).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 6, 6)
    y = norm(self, y.transpose(1, 2)).transpose(1, 2).reshape(b, h, w, 2, 3, 6)
    return y.permute(0, 1, 3, 2, 4, 5).reshape(x.shape)


def heads(self: Net, x: Tensor) -> Tensor:
    """The channels themselves are cut, and joined again ahead of the norm."""
    y = norm(self, x.unflatten(-1, (2, 3)).permute(0, 2, 3, 1).flatten(1, 2))
    return y.unflatten(1, (2, 3)).permute(0, 3, 1, 2).flatten(2)


def outside(self: Net, x: Tensor, form: Form) -> Tensor:
    return form(self, x) + self.alpha * x


def none(self: Net, x: Tensor, form: Form) -> Tensor:
    return form(self, x)


FORMS = [image, square, channels_last, rows, volume, windows, heads]


def calls(made: normfuse.Rewritten) -> list[str]:
    return [str(n.target) for n in made.program.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(("skip", "kind"), [(none, "batch_norm"), (outside, "rep_batch_norm")])
@pytest.mark.parametrize("form", FORMS)
def test_norms_vanish_with_moves_that_cut(form: Form, skip: Skip, kind: str) -> None:
    model = Net(lambda self, x: skip(self, x, form))
    x = torch.randn(2, HEIGHT * WIDTH, 4, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,))
    assert made.report.found == {kind: 1}
    assert made.report.after == {}
    assert distance(made.module()(x), model(x)) <= EXACT
    assert [c for c in calls(made) if any(move in c for move in MOVES)] == []


def turned(self: Net, x: Tensor) -> Tensor:
    """The image comes back with its sides exchanged."""
    y = norm(self, x.mT.unflatten(2, (6, 6))).transpose(2, 3)
    return y.reshape(-1, 6, 36).mT


def other_windows(self: Net, x: Tensor) -> Tensor:
    """Rows of windows come back as columns."""
    b, h, w = x.shape[0], HEIGHT // 2, WIDTH // 3
    y = x.view(b, h, 2, w, 3, 6).permute(0, 1, 3, 2, 4, 5).reshape(-1, 6, 6)
    y = norm(self, y.transpose(1, 2)).transpose(1, 2).reshape(b, w, h, 2, 3, 6)
    return y.permute(0, 2, 3, 1, 4, 5).reshape(x.shape)


def along_rows(self: Net, x: Tensor) -> Tensor:
    """What is normalized are rows of the image, as many as the channels."""
    return norm(self, x.unflatten(1, (6, 6))).flatten(1, 2)


def along_columns(self: Net, x: Tensor) -> Tensor:
    return norm(self, x.unflatten(1, (6, 6)).transpose(1, 2)).transpose(1, 2).flatten(1, 2)


def other_heads(self: Net, x: Tensor) -> Tensor:
    """The channels come back in another order."""
    y = norm(self, x.unflatten(-1, (2, 3)).permute(0, 3, 2, 1).flatten(1, 2))
    return y.unflatten(1, (2, 3)).permute(0, 3, 1, 2).flatten(2)


@pytest.mark.parametrize("skip", [none, outside])
@pytest.mark.parametrize("form", [turned, other_windows, along_rows, along_columns, other_heads])
def test_what_does_not_come_back_keeps_its_moves(form: Form, skip: Skip) -> None:
    model = Net(lambda self, x: skip(self, x, form))
    x = torch.randn(2, HEIGHT * WIDTH, 4, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,))
    assert distance(made.module()(x), model(x)) <= EXACT
    assert [c for c in calls(made) if any(move in c for move in MOVES)] != [] or made.report.after != {}


def of_any_size(self: Net, x: Tensor) -> Tensor:
    y = norm(self, x.transpose(1, 2).reshape(x.shape[0], 6, -1, WIDTH))
    return y.flatten(2).transpose(1, 2)


def of_any_square(self: Net, x: Tensor) -> Tensor:
    side = int(x.shape[1] ** 0.5)
    y = norm(self, x.transpose(1, 2).reshape(x.shape[0], 6, side, side))
    return y.flatten(2).transpose(1, 2)


def of_published_code(self: Net, x: Tensor) -> Tensor:
    """The sizes that the views are given are values of the graph."""
    b, n, c = x.shape
    y = x.clone().permute(0, 2, 1).contiguous().reshape(b, c, n).unsqueeze(-1)
    y = y / torch.sqrt(self.norm.running_var.view(1, c, 1, 1) + 1e-5)
    y = y * self.norm.weight.view(1, c, 1, 1) + self.norm.bias.view(1, c, 1, 1)
    return y.reshape(b, c, n).permute(0, 2, 1).contiguous()


@pytest.mark.parametrize("skip", [none, outside])
@pytest.mark.parametrize("form", [of_any_size, of_any_square, of_published_code])
def test_open_sizes(form: Form, skip: Skip) -> None:
    model = Net(lambda self, x: skip(self, x, form))
    torch._dynamo.reset()
    fast = torch.compile(
        model, backend="normfuse", dynamic=True, options={"normfuse.inner": "eager"}, fullgraph=True
    )
    with torch.no_grad():
        for batch, tokens in ((2, 36), (3, 81)):
            x = torch.randn(batch, tokens, 4, dtype=torch.float64)
            assert distance(fast(x), model(x)) <= EXACT
    report = normfuse.last_report()
    assert (report.graphs, sum(report.found.values()), report.after) == (1, 1, {})


@pytest.mark.parametrize("form", [of_any_size, of_published_code])
def test_open_sizes_of_an_export(form: Form) -> None:
    model, x = Net(lambda self, x: outside(self, x, form)), torch.randn(2, 36, 4, dtype=torch.float64)
    rows = torch.export.Dim("rows", min=2, max=99)
    sizes = ({0: torch.export.Dim("batch", min=2), 1: WIDTH * rows},)
    made = normfuse.rewrite(torch.export.export(model, (x,), dynamic_shapes=sizes))
    assert made.report.after == {}
    (site,) = made.report.sites
    changed = {w["name"] for w in site.certificate["weights"]}
    assert not any("before" in name for name in changed)
    other = torch.randn(3, 45, 4, dtype=torch.float64)
    assert distance(made.module()(other), model(other)) <= EXACT


def _factorings(number: int, count: int) -> Iterator[tuple[int, ...]]:
    if count == 1:
        yield (number,)
        return
    for first in range(2, number):
        if number % first == 0:
            yield from ((first, *rest) for rest in _factorings(number // first, count - 1))


def _ends(sizes: Sequence[int]) -> set[int]:
    """How many elements lie behind each boundary of axes."""
    return {math.prod(sizes[i:]) for i in range(len(sizes) + 1)}


def test_common_factors_are_the_finest_axes_where_there_are_any() -> None:
    ways = [sizes for count in range(1, 5) for sizes in _factorings(36, count)]
    for left, right in itertools.product(ways, ways):
        ends = sorted(_ends(left) | _ends(right))
        exist = all(b % a == 0 for a, b in itertools.pairwise(ends))
        found = common_factors(left, right)
        assert (found is not None) == exist
        if found is not None:
            assert found.sizes == [b // a for a, b in itertools.pairwise(ends)][::-1]
            for way, counts in ((left, found.left), (right, found.right)):
                rest = iter(found.sizes)
                assert [math.prod(itertools.islice(rest, count)) for count in counts] == list(way)
    assert common_factors((0, 5), (0, 7)) is None
