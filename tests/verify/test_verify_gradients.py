"""verify(grads=True): gradients of every trainable parameter against the oracle's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normfuse.errors import VerificationError
from normfuse.verify import verify
from normfuse.verify.capture import capture_reference
from normfuse.verify.gradients import oracle_run, parameter_gradients

pytestmark = pytest.mark.rounding


class Net(nn.Module):
    def __init__(self, gradient_scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.gradient_scale = gradient_scale
        self.linear, self.norm, self.unused = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.randn(8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        # The same value, with another gradient.
        h = h.detach() + self.gradient_scale * (h - h.detach())
        return self.norm(h) * self.frozen


def example(dtype: torch.dtype = torch.float32) -> tuple[Tensor]:
    return (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(dtype),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_are_leaves(dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    result = verify(model, copy.deepcopy(model), example(dtype), grads=True)
    assert result.ok
    names = {leaf.path: leaf for leaf in result.leaves}
    trainable = {f"grad:{n}" for n, p in model.named_parameters() if p.requires_grad}
    assert set(names) == {"output"} | trainable
    assert names["grad:linear.weight"].judged
    error = names["grad:linear.weight"].max_rel_error
    assert (dtype == torch.float64) == (error == 0.0)
    assert error < 32 * torch.finfo(dtype).eps
    assert names["grad:unused.weight"].max_abs_error == 0.0


def test_a_wrong_gradient_behind_equal_values_is_found() -> None:
    model, wrong = Net(), Net(gradient_scale=1.001)
    assert verify(model, wrong, example()).ok
    failed = {leaf.path for leaf in verify(model, wrong, example(), grads=True).leaves if not leaf.ok}
    assert failed == {"grad:linear.weight", "grad:linear.bias"}


def test_the_oracles_gradients_are_those_of_the_double_model() -> None:
    model, (x,) = Net(), example()
    with torch.enable_grad():
        _, found = oracle_run(capture_reference(model, (x,)), ["linear.weight"], {"output": torch.float32})
        double = copy.deepcopy(model).double()
        outputs = {"output": double(x.double())}
        parameters = {"linear.weight": double.linear.weight}
        expected = parameter_gradients(outputs, parameters, {"output": torch.float32})
    assert found["linear.weight"].dtype == torch.float64
    assert torch.allclose(found["linear.weight"], expected["linear.weight"], rtol=1e-12, atol=1e-14)


def test_the_projection_sees_every_element_of_every_output() -> None:
    x = torch.ones(3, 4, requires_grad=True)
    outputs = {"output[0]": x * 1.0, "output[1]": x * 1.0}
    both = parameter_gradients(outputs, {"x": x}, {"output[0]": torch.float32, "output[1]": torch.float32})[
        "x"
    ]
    one = parameter_gradients({"output[0]": x * 1.0}, {"x": x}, {"output[0]": torch.float32})["x"]
    assert one.unique().numel() == 12
    assert (one != 0).all()
    assert not torch.equal(both, one)
    assert not torch.allclose(both, 2 * one)


def test_no_grad_regions_stay_without_gradients() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(1, 2, 8))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = (x * self.weight).abs().mean()
            return x * self.weight * scale

    model = Partly()
    result = verify(model, copy.deepcopy(model), example(), grads=True)
    assert result.ok
    # Had the oracle differentiated through the scale, its gradient would be another one and nothing judged.
    assert all(leaf.judged and leaf.max_rel_error < 1e-6 for leaf in result.leaves)


def test_exported_and_compiled_candidates() -> None:
    model = Net()
    assert verify(model, torch.export.export(model, example()), example(), grads=True).ok
    assert verify(model, torch.compile(copy.deepcopy(model), backend="eager"), example(), grads=True).ok


def test_training_with_running_statistics_and_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
            self.last.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.first(x)).relu())

    model = Tied().train()
    result = verify(model, copy.deepcopy(model), example(), grads=True)
    assert result.ok
    assert sum(leaf.path.endswith(".weight") for leaf in result.leaves) == 2
    weight = next(leaf for leaf in result.leaves if leaf.path == "grad:first.weight")
    assert weight.judged


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (lambda x: x, "the candidate is a function"),
        (nn.Identity(), "no parameter of the candidate requires grad"),
        (nn.Linear(8, 8), r"no trainable parameter linear\.weight"),
    ],
)
def test_candidates_without_the_parameters_are_refused(candidate: object, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        verify(Net(), candidate, example(), grads=True)


def test_outputs_without_gradients_are_refused() -> None:
    class Cut(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(VerificationError, match="no output depends on a parameter"):
        verify(Cut(), Cut(), example(), grads=True)
