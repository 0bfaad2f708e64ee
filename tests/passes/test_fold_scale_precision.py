"""What a norm's weight and bias cost in precision where readers take them, and when they may not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import normfuse
from normfuse.folding.precision import may_cancel
from tests.passes.affine_cases import Net
from tests.passes.test_fold_scale import codes

pytestmark = pytest.mark.rounding

D = 128
NARROW = [torch.bfloat16, torch.float16]


def network(run: Callable[..., torch.Tensor], norm: nn.Module, bias: float = 0.0) -> Net:
    """A norm with a weight around 1 and a bias of this size, and two layers."""
    torch.manual_seed(0)
    model = Net(run, {"norm": norm, "one": nn.Linear(D, D), "two": nn.Linear(D, D)})
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * torch.randn(D))
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(bias * torch.randn(D))
    return model.eval()


def one(s: Net, x: torch.Tensor) -> torch.Tensor:
    return s.one(s.norm(x))


def both(s: Net, x: torch.Tensor) -> torch.Tensor:
    """Under autocast each layer casts the values of the norm by itself."""
    h = s.norm(x)
    return s.one(h) + s.two(h).sin()


def compiled(model: nn.Module) -> Callable[..., torch.Tensor]:
    torch._dynamo.reset()
    return torch.compile(model, backend=normfuse.normfuse_backend, options={"normfuse.inner": "eager"})


def rows(scale: float = 1.0, mean: torch.Tensor | None = None) -> torch.Tensor:
    made = scale * torch.randn(64, D, generator=torch.Generator().manual_seed(1))
    return made if mean is None else made + mean


@torch.no_grad()
def ratio(model: nn.Module, x: torch.Tensor) -> tuple[float, list[str]]:
    """The error of the compiled model over that of the model, against float64, and the reasons to stay."""
    wanted = copy.deepcopy(model).double()(x.double())
    errors = [float((call(x).double() - wanted).norm()) for call in (compiled(model), model)]
    return errors[0] / errors[1], codes(normfuse.last_report())


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_readers_round_no_more_than_the_norm(norm: type[nn.Module], dtype: torch.dtype) -> None:
    """In a narrow dtype the changed weight is rounded once more beside two others: sqrt(3 / 2) = 1.23."""
    found, kept = ratio(network(one, norm(D), 0.1).to(dtype), rows().to(dtype))
    assert (kept, found <= 1.5) == ([], True)


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("run", [one, both])
def test_under_autocast_weights_are_rounded_once(run: Callable[..., torch.Tensor], norm: type) -> None:
    """The values are rounded before the scale instead of behind it, the weight with it instead of before.

    Both roundings are what they were; 1.1 leaves room for the bias, and for chance in 8192 numbers.
    """
    model = network(run, norm(D), 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found, kept = ratio(model, rows())
    assert kept == []
    assert found <= 1.1


def cancelling(dtype: torch.dtype) -> tuple[Net, torch.Tensor]:
    """A norm whose bias takes away what its input has in common at all positions."""
    mean = torch.randn(D, generator=torch.Generator().manual_seed(2))
    mean = (mean - mean.mean()) / mean.std(correction=0)
    model = network(one, nn.LayerNorm(D))
    with torch.no_grad():
        model.norm.bias.copy_(-model.norm.weight * mean)
    return model.to(dtype), rows(0.01, mean).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
def test_a_bias_that_may_cancel_values_stays(dtype: torch.dtype) -> None:
    """Folded, the errors would be 6 to 18 times as large."""
    model, x = cancelling(dtype)
    assert ratio(model, x) == (1.0, ["large_bias"])


def test_in_float64_there_is_precision_to_spare() -> None:
    model, x = cancelling(torch.float64)
    assert codes(normfuse.rewrite(model, (x,), verify="off").report) == []


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
def test_the_largest_bias_keeps_errors_within_budget(dtype: torch.dtype) -> None:
    """The worst case: all values are what they have in common, and the bias takes away as much as it may."""
    model, x = cancelling(dtype)
    with torch.no_grad():
        model.norm.bias.mul_(0.333 if dtype == torch.float32 else 0.183)
        model.norm.bias.mul_(0.99)
    found, kept = ratio(model, x)
    assert kept == []
    assert found <= 1.6  # 1.5 by the sizes of values; the size of a sum differs by chance, and so do weights


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
def test_sizes_are_compared_as_root_mean_squares(dtype: torch.dtype) -> None:
    weight, bias = torch.full((D,), 2.0), torch.full((D,), 0.3)
    assert not may_cancel(weight, bias, dtype)
    assert may_cancel(weight, 10 * bias, dtype)
    assert may_cancel(None, 10 * bias, dtype)
    assert not may_cancel(None, bias / 2, dtype)
    assert may_cancel(weight, bias * torch.nan, dtype)
    assert not may_cancel(weight, 10 * bias, torch.float64)


def test_a_bias_that_grows_is_seen() -> None:
    model = network(one, nn.LayerNorm(D), 0.1)
    fast, x = compiled(model), rows()
    with torch.no_grad():
        fast(x)
        assert codes(normfuse.last_report()) == []
        model.norm.bias.fill_(5.0)
        for _ in range(2):
            assert torch.equal(fast(x), model(x))
    assert codes(normfuse.last_report()) == ["large_bias"]


@pytest.mark.parametrize(("dtype", "reasons"), [(torch.float16, ["overflow"]), (torch.bfloat16, [])])
def test_sums_of_what_a_small_weight_kept_small_stay_in_float16(
    dtype: torch.dtype, reasons: list[str]
) -> None:
    """3000 rows of the same entries of up to 8 reach 24000; with 3 in front of it, 72000."""
    model = network(lambda s, x: s.one((s.norm(x) * 4).sum(0, keepdim=True)), nn.RMSNorm(D))
    x = torch.full((3000, D), 0.1)
    x[:, 0] = 10.0
    with torch.no_grad():
        model.norm.weight.mul_(1e-3)
    model, x = model.to(dtype), x.to(dtype)
    with torch.no_grad():
        found = compiled(model)(x)
    assert codes(normfuse.last_report()) == reasons
    assert bool(found.isfinite().all())


def test_a_layer_that_is_called_twice_has_one_folded_weight() -> None:
    """Autocast caches what it casts, or casts it at each call: the folded weight is one in any case."""
    model = network(lambda s, x: s.one(s.norm(x)) + s.one(s.norm(x.cos())), nn.LayerNorm(D), 0.05)
    for around in (torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)):
        with torch.no_grad(), around:
            compiled(model)(rows())
        report = normfuse.last_report()
        assert (codes(report), report.folded) == ([], 2)


def test_a_weight_that_is_laid_out_anew_when_it_is_cast_lies_as_it_did() -> None:
    """Strides of the results depend on it."""
    norm, weight = nn.RMSNorm(4), torch.randn(4, 4, 2, 3)

    def run(s: Net, x: torch.Tensor) -> torch.Tensor:
        kernel = s.kernel.to(torch.bfloat16, memory_format=torch.channels_last)
        return torch.conv2d(s.norm(x).movedim(-1, 1).contiguous(), kernel)

    model = Net(run, {"norm": norm.bfloat16(), "kernel": nn.Parameter(weight)}).eval()
    x = torch.randn(2, 3, 4, 4).bfloat16()
    with torch.no_grad():
        found, wanted = compiled(model)(x), model(x)
    assert codes(normfuse.last_report()) == []
    assert (found.stride(), found.dtype) == (wanted.stride(), wanted.dtype)


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_held_in_float16_is_found_beside_any_other_dtype(other: torch.dtype, is_first: bool) -> None:
    """bfloat16 has as many bits, and holds numbers as large as float32 does."""

    def run(s: Net, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = s.norm(x)
        first = s.one(h.to(other)) if is_first else None
        narrow = s.two((h * 4).sum(0, keepdim=True).half())
        return narrow, s.one(h.to(other)) if first is None else first

    model = network(run, nn.RMSNorm(D))
    model.one.to(other)
    model.two.half()
    with torch.no_grad():
        compiled(model)(rows())
    assert codes(normfuse.last_report()) == ["overflow"]


def test_a_bias_is_judged_by_the_dtype_of_fewest_digits() -> None:
    """A quarter of the weight is small enough for float32, and too large for what reads in bfloat16."""
    model = network(lambda s, x: (s.one(h := s.norm(x)), s.two(h.bfloat16())), nn.LayerNorm(D))
    model.two.bfloat16()
    with torch.no_grad():
        model.norm.weight.fill_(1.0)
        model.norm.bias.fill_(0.25)
        compiled(model)(rows())
    assert codes(normfuse.last_report()) == ["large_bias"]
