"""Where a convolution adds the shift of a norm: not in ahead of a sum in which every rounding feels it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

import normfuse
from normfuse.capture.exported import program_of
from normfuse.folding.recipe import FOLD
from normfuse.ir import Program
from normfuse.ir.calls import aten
from normfuse.ir.emit import call
from normfuse.options import Options
from normfuse.passes import pipeline
from normfuse.passes.pipeline import run_pipeline
from normfuse.passes.settle_shifts import note_shift, settle_shifts
from normfuse.passes.work import Work
from normfuse.verify.compare import error_ratio

pytestmark = pytest.mark.rounding

C = 64


def network(kernel: int, groups: int, behind: type[nn.Module], shift: float, mean: float) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(C, C, kernel, padding=kernel // 2, groups=groups, bias=False)
    model = nn.Sequential(conv, nn.BatchNorm2d(C), behind())
    with torch.no_grad():
        model[1].running_mean.normal_().mul_(mean)
        model[1].bias.normal_().mul_(shift)
    return model.eval()


def image(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, C, 14, 14, generator=torch.Generator().manual_seed(1)).to(dtype)


def targets(graph: torch.fx.Graph) -> list[str]:
    return [str(n.target).split(".")[1] for n in graph.nodes if n.op == "call_function"]


def taken(model: nn.Module, x: torch.Tensor, *, offline: bool, precise: bool = False) -> list[str]:
    """The operators that the passes leave."""
    program = program_of(torch.export.export(model, (x,)))
    program.copies_tables = offline
    run_pipeline(program, Options(), precise=precise)
    return targets(program.gm.graph)


def compiled(model: nn.Module) -> nn.Module:
    options = {"normfuse.inner": "eager"}
    return torch.compile(model, backend=normfuse.normfuse_backend, options=options)


def ratio(model: nn.Module, candidate: nn.Module) -> float:
    x = image()
    with torch.no_grad():
        oracle = copy.deepcopy(model).double()(x.double())
        return error_ratio(model(x), candidate(x), oracle)


@pytest.mark.parametrize(
    ("kernel", "groups", "behind"), [(3, 1, nn.ReLU), (3, C, nn.Hardswish), (5, 8, nn.SiLU)]
)
def test_statistics_far_from_the_data_cost_no_precision(
    kernel: int, groups: int, behind: type[nn.Module]
) -> None:
    """A sum of hundreds of products that starts from the bias is up to 15 times as far off."""
    model = network(kernel, groups, behind, shift=1.0, mean=5.0)
    assert ratio(model, compiled(model)) <= 1.2


@pytest.mark.parametrize("behind", [nn.Identity, nn.ReLU])
def test_a_large_shift_stands_behind_in_a_program_as_well(behind: type[nn.Module]) -> None:
    model = network(3, 1, behind, shift=30.0, mean=0.0)
    made = normfuse.rewrite(model, (image(),))
    assert made.report.after == {}
    assert targets(made.program.graph)[:2] == ["conv2d", "add"]
    assert ratio(model, made.module()) <= 1.2


class Beside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        nn.init.normal_(self.conv.weight, 0.0, 0.1)  # whose results are larger than what stands beside
        nn.init.normal_(self.norm.bias, 0.0, 30.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x) + self.norm(x))


def test_a_large_shift_beside_a_convolution_stands_behind_it_in_a_program_as_well() -> None:
    torch.manual_seed(0)
    model = Beside().eval()
    assert taken(model, image(), offline=True) == ["conv2d", "add", "relu"]


@pytest.mark.parametrize("mean", [0.5, 3.0])
def test_a_program_has_ordinary_shifts_in_the_bias(mean: float) -> None:
    """The norm's own sum runs as far, from zero to the mean."""
    model = network(3, 1, nn.ReLU, shift=0.3, mean=mean)
    assert taken(model, image(), offline=True) == ["conv2d", "relu"]
    assert taken(model, image(), offline=True, precise=True) == ["conv2d", "add", "relu"]
    assert taken(model, image(), offline=False) == ["conv2d", "add", "relu"]


def test_a_weight_that_reads_a_norm_settles_the_shift_as_well() -> None:
    norm, conv = nn.BatchNorm2d(C), nn.Conv2d(C, C, 3)
    norm.running_mean.normal_().mul_(0.1)
    model = nn.Sequential(norm, conv, nn.ReLU()).eval()
    assert taken(model, image(), offline=False) == ["conv2d", "add", "relu"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_gain_nothing(dtype: torch.dtype) -> None:
    model = network(3, 1, nn.ReLU, shift=30.0, mean=0.5).to(dtype)
    assert taken(model, image(dtype), offline=False, precise=True) == ["conv2d", "relu"]


class Read(nn.Module):
    """The norm is read by something that Inductor does not fuse with an addition."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem, self.last = stem, nn.Conv2d(C, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.stem(x)
        return self.last(h), torch.relu(h)


def test_an_addition_that_would_cost_a_pass_is_not_made() -> None:
    model = Read(network(3, 1, nn.Identity, shift=0.3, mean=0.5)).eval()
    assert taken(model, image(), offline=False) == ["conv2d", "conv2d", "relu"]


def test_verification_asks_for_the_precise_form_before_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shifts in biases are made to cost precision; how much they do cost is a matter of the kernel."""
    settle = pipeline.settle_shifts

    def settle_badly(work: Work) -> None:
        settle(work)
        if work.shifts_in_biases:
            output = work.program.gm.graph.output_node()
            (result,) = output.args[0]
            with work.program.gm.graph.inserting_before(output):
                worse = call(work.program.gm.graph, aten.mul.Tensor, result, 1.01)
            output.replace_input_with(result, worse)

    monkeypatch.setattr(pipeline, "settle_shifts", settle_badly)
    model = network(3, 1, nn.ReLU, shift=0.3, mean=0.0)
    # Such a norm is an addition: behind the convolution it is the same one, on every machine.
    model[1].eps = 0.5
    model[1].running_var.fill_(0.5)
    assert taken(model, image(), offline=True) == ["conv2d", "relu", "mul"]
    made = normfuse.rewrite(model, (image(),))
    assert [s.action for s in made.report.sites] == ["folded"]
    assert targets(made.program.graph) == ["conv2d", "add", "relu"]
    with torch.no_grad():
        assert torch.equal(made.module()(image()), model(image()))


def test_an_image_without_a_batch() -> None:
    """Channels, rows and columns are as many."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.norm(self.conv(x)[None]))

    model, x = One().eval(), torch.randn(4, 4, 4)
    model.norm.bias.data.copy_(torch.arange(4) * 100)
    with torch.no_grad():
        made = normfuse.rewrite(model, (x,))
        assert "add" in targets(made.program.graph)
        torch.testing.assert_close(made.module()(x), model(x), rtol=1e-5, atol=1e-4)


def test_the_answer_is_the_same_in_every_spelling() -> None:
    """The addition stands between convolutions of each rank and what read them."""
    for rank, up in ((1, False), (1, True), (2, True), (3, False)):
        conv = getattr(nn, f"Conv{'Transpose' if up else ''}{rank}d")(6, 8, 3, groups=2)
        model = nn.Sequential(conv, getattr(nn, f"BatchNorm{rank}d")(8), nn.ReLU()).eval()
        model[1].bias.data.normal_().mul_(50)
        x = torch.randn(2, 6, *([7] * rank))
        with torch.no_grad():
            made = normfuse.rewrite(model, (x,), verify="off")
            assert "add" in targets(made.program.graph)
            torch.testing.assert_close(made.module()(x), model(x), rtol=1e-5, atol=1e-4)


#: What is known of a convolution and its bias, and whether the bias is added behind.
SHIFTS: dict[str, tuple[bool, bool, str, bool]] = {
    "the shift of a norm": (True, True, "cpu", True),
    "a bias that something else made": (False, True, "cpu", False),
    "the model's own bias": (True, False, "cpu", False),
    "on an accelerator": (True, True, "meta", False),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_only_the_shift_of_a_norm_is_added_behind(name: str) -> None:
    shifts, folds, device, moved = SHIFTS[name]
    graph = Graph()
    x, weight, bias = (graph.placeholder(n) for n in ("x", "weight", "bias"))
    for node, shape in ((x, (2, 3, 5)), (weight, (4, 3, 1)), (bias, (4,))):
        node.meta["val"] = torch.ones(shape, device=device)
    node = graph.call_function(aten.conv1d.default, (x, weight, bias))
    node.meta["val"] = torch.ones(2, 4, 5, device=device)
    graph.output(node)
    if shifts:
        note_shift(node)
    if folds:
        bias.meta[FOLD] = True
    work = Work(Program(GraphModule({}, graph), []), Options(), precise=True)
    settle_shifts(work)
    assert ("add" in targets(graph)) is moved
    assert work.shifts_in_biases == 0
