"""verify: agrees with itself, finds small changes, compares structure, and leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfuse.errors import CaptureError, InputError, VerificationError
from normfuse.verify import verify
from normfuse.verify.capture import capture_reference

pytestmark = pytest.mark.rounding


class Block(nn.Module):
    """Two norms around a linear layer; inputs of small variance make eps matter."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.LayerNorm(16, eps=eps)
        self.linear = nn.Linear(16, 16)
        self.second = nn.LayerNorm(16, eps=eps)
        nn.init.normal_(self.first.weight)
        nn.init.normal_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.linear(self.first(x)))


def inputs(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor]:
    return ((torch.randn(4, 16, generator=torch.Generator().manual_seed(0)) * scale).to(dtype),)


def altered(change: Callable[[Block], None], model: Block | None = None) -> Block:
    model = copy.deepcopy(model or Block())
    with torch.no_grad():
        change(model)
    return model


def scale_one_weight(model: Block) -> None:
    model.first.weight[3] *= 1.001


def scale_weight(model: Block) -> None:
    model.first.weight *= 1.001


def swap_norm_weights(model: Block) -> None:
    model.first.weight, model.second.weight = model.second.weight, model.first.weight


def swap_two_entries(model: Block) -> None:
    model.second.weight[[0, 1]] = model.second.weight[[1, 0]]


def smaller_eps(model: Block) -> None:
    model.first.eps = 1e-6


def drop_bias(model: Block) -> None:
    model.linear.bias.zero_()


CHANGES = [scale_one_weight, scale_weight, swap_norm_weights, swap_two_entries, smaller_eps, drop_bias]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_model_is_equivalent_to_itself(dtype: torch.dtype) -> None:
    model = Block().to(dtype)
    result = verify(model, copy.deepcopy(model), inputs(dtype=dtype))
    assert result.ok
    assert result.error_ratio <= 1.0
    assert all(leaf.judged for leaf in result.leaves)
    # In float64 the oracle is the model; otherwise its own rounding has to show.
    assert (dtype == torch.float64) == (result.max_rel_error == 0.0)
    assert result.max_rel_error < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_small_change_is_found(change: Callable[[Block], None], dtype: torch.dtype) -> None:
    # Variance 1e-4: eps = 1e-5 is a tenth of it.
    result = verify(Block().to(dtype), altered(change).to(dtype), inputs(0.01, dtype))
    assert not result.ok
    assert result.error_ratio > 10


@pytest.mark.parametrize("change", [swap_norm_weights, swap_two_entries, drop_bias], ids=lambda f: f.__name__)
def test_a_change_above_bfloat16s_precision_is_found(change: Callable[[Block], None]) -> None:
    result = verify(Block().bfloat16(), altered(change).bfloat16(), inputs(dtype=torch.bfloat16))
    assert not result.ok


def test_an_eps_that_cannot_matter_is_accepted() -> None:
    # Variance 1e8: 1e-5 against 1e-6 moves the output by 1e-13 relative, a millionth of a float32 ulp.
    assert verify(Block(), altered(smaller_eps), inputs(1e4)).ok


def test_an_exact_reformulation_is_accepted() -> None:
    model = Block()

    def centred(x: Tensor) -> Tensor:
        h = x - x.mean(-1, keepdim=True)
        h = F.rms_norm(h, (16,), model.first.weight, model.first.eps) + model.first.bias
        h = x + model.linear(h)
        h = h - h.mean(-1, keepdim=True)
        return F.rms_norm(h, (16,), model.second.weight, model.second.eps) + model.second.bias

    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        result = verify(model, centred, inputs(dtype=dtype))
        assert result.ok, result


def test_a_less_accurate_candidate_is_found() -> None:
    model = Block()
    assert not verify(model, lambda x: model(x.bfloat16().float()), inputs()).ok
    assert not verify(model, lambda x: F.layer_norm(x, (16,)), inputs()).ok


def test_a_more_accurate_candidate_is_accepted() -> None:
    model = Block().bfloat16()
    wide = copy.deepcopy(model).double()
    result = verify(model, lambda x: wide(x.double()).bfloat16(), inputs(dtype=torch.bfloat16))
    assert result.ok
    assert result.error_ratio < 1


class Rotary(nn.Module):
    """A bfloat16 layer with a float32 rotary table inside."""

    def __init__(self, compute: torch.dtype) -> None:
        super().__init__()
        self.compute = compute
        self.register_buffer("frequency", 1e4 ** -(torch.arange(16) / 16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2])[:, None].to(self.compute) * self.frequency.to(self.compute)
        return x * angle.cos().to(x.dtype) + x.flip(-1) * angle.sin().to(x.dtype)


def test_a_table_computed_in_bfloat16_is_found() -> None:
    x = torch.randn(1, 512, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert verify(Rotary(torch.float32), Rotary(torch.float32), (x,)).ok
    assert not verify(Rotary(torch.float32), Rotary(torch.bfloat16), (x,)).ok


@dataclass
class Result:
    hidden: Tensor
    count: Tensor
    extra: object = None


class Pair(NamedTuple):
    left: Tensor
    right: list[Tensor]


class Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.keys = [tensor]
        self.owner = self


def structured(factor: float = 1.0, count: int = 4, extra: object = "text") -> Callable[[Tensor], Any]:
    def f(x: Tensor) -> Any:
        result = Result(x.exp(), (x * 0).long() + count, extra)
        return {
            "result": result,
            "pair": Pair(x / 3, [x * factor / 7]),
            "none": None,
            "held": Holder(x.cos()),
        }

    return f


def test_every_kind_of_leaf_is_compared() -> None:
    result = verify(structured(), structured(), inputs())
    assert result.ok
    assert [leaf.path for leaf in result.leaves] == [
        "output.result.hidden",
        "output.result.count",
        "output.pair.left",
        "output.pair.right[0]",
        "output.held.keys[0]",
    ]
    assert all(leaf.judged for leaf in result.leaves)
    changed = verify(structured(), structured(factor=1.001), inputs())
    assert [leaf.path for leaf in changed.leaves if not leaf.ok] == ["output.pair.right[0]"]
    changed = verify(structured(), structured(count=5), inputs())
    assert [leaf.path for leaf in changed.leaves if not leaf.ok] == ["output.result.count"]


def test_plain_values_have_to_be_equal() -> None:
    with pytest.raises(
        VerificationError, match=r"output\.result\.extra is 'text' in the reference, 'other' in"
    ):
        verify(structured(), structured(extra="other"), inputs())


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (lambda x: (x,), r"The candidate has no output leaf output\[1\]"),
        (lambda x: (x, x, x), r"The candidate has the output leaf output\[2\]"),
        (lambda x: (x, None), r"output\[1\] is a tensor in the reference, None in the candidate"),
        (lambda x: (x, x[:2]), r"output\[1\] has shape"),
        (lambda x: (x, x.double()), r"output\[1\] has dtype"),
    ],
)
def test_a_different_structure_is_an_error(candidate: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        verify(lambda x: (x, x * 2), candidate, inputs())


def test_a_list_may_replace_a_tuple_and_a_dict_a_dataclass() -> None:
    assert verify(
        lambda x: (x, Result(x, x)), lambda x: [x, {"hidden": x, "count": x, "extra": None}], inputs()
    ).ok


def test_hostile_inputs_are_judged_where_the_reference_is_finite() -> None:
    (x,) = inputs()
    x[0], x[1, 2] = float("nan"), float("inf")
    model = Block()
    result = verify(model, copy.deepcopy(model), (x,))
    assert result.ok
    assert result.leaves[0].judged
    assert not verify(model, altered(scale_weight), (x,)).ok
    assert not verify(model, lambda t: model(t).nan_to_num(), (x,)).ok


def test_a_reference_that_is_all_error_is_not_judged() -> None:
    # The mean, 1e8, swallows the variance in float32.
    (leaf,) = verify(lambda t: (t + 1e8).var(-1), lambda t: (t + 1e8).var(-1) + 9, inputs()).leaves
    assert (leaf.judged, leaf.ok) == (False, True)


def test_keyword_and_plain_arguments_are_passed_on() -> None:
    def f(x: Tensor, *, flip: bool, scale: int, extra: dict[str, Tensor] | None = None) -> Tensor:
        y = -x if flip else x
        return y * scale + (0 if extra is None else extra["bias"] / 3)

    (x,) = inputs()
    kwargs = {"flip": True, "scale": 3, "extra": {"bias": x + 1}}
    result = verify(f, lambda x, **k: -3 * x + k["extra"]["bias"] / 3, (x,), kwargs)
    assert result.ok
    assert not verify(f, lambda x, **k: -3 * x, (x,), kwargs).ok


def test_data_dependent_python_runs() -> None:
    def f(x: Tensor) -> Tensor:
        rows = [r / 3 for r in x if r.sum() > 0]
        return torch.stack(rows) * x.abs().max().item()

    assert 0 < len(f(*inputs())) < 4
    assert verify(f, f, inputs()).ok


def test_exported_programs_and_their_holders_on_either_side() -> None:
    class Holding:
        def __init__(self, program: torch.export.ExportedProgram) -> None:
            self.program = program

    model = Block().eval()
    program = torch.export.export(model, inputs())
    other = torch.export.export(altered(scale_weight), inputs())
    for wrapped in (program, Holding(program)):
        assert verify(wrapped, model, inputs()).ok
        assert verify(model, wrapped, inputs()).ok
        assert not verify(wrapped, altered(scale_weight), inputs()).ok
    assert not verify(model, Holding(other), inputs()).ok


def test_compiled_programs_on_either_side() -> None:
    model = Block()
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    assert verify(model, compiled, inputs()).ok
    assert verify(compiled, model, inputs()).ok
    assert not verify(compiled, altered(scale_weight), inputs()).ok
    inner = copy.deepcopy(model)
    inner.linear.compile(backend="eager")
    assert verify(inner, model, inputs()).ok


def test_an_ambient_autocast_does_not_reach_the_oracle() -> None:
    model = Block()
    with torch.autocast("cpu", torch.bfloat16):
        result = verify(model, copy.deepcopy(model), inputs())
    assert result.ok
    assert result.max_rel_error > 1e-4


def test_under_inference_mode() -> None:
    model, other = Block(), Block()
    with torch.inference_mode():
        (x,) = inputs()
        assert verify(model, other, (x,), grads=True).ok


def test_what_cannot_be_verified_is_refused() -> None:
    with pytest.raises(InputError, match="Cannot run a int"):
        verify(3, Block(), inputs())
    with pytest.raises(InputError, match="returns no tensor"):
        verify(lambda x: 3, lambda x: 3, inputs())
    calls = []

    def only_once(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) > 1:
            raise ValueError("not twice")
        return x

    with pytest.raises(CaptureError, match="could not be traced for the oracle: not twice"):
        verify(only_once, lambda x: x, inputs())


class Mutating(nn.Module):
    """Updates buffers in place and by rebinding, a plain attribute, and its input; draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("rebound", torch.zeros(()))
        self.plain = torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        self.rebound = self.rebound + 1
        self.plain.add_(1)
        x.mul_(2)
        return self.drop(self.norm(x)) + self.count + self.plain[0] + self.rebound


@pytest.mark.parametrize("grads", [False, True])
def test_nothing_is_left_behind(grads: bool) -> None:
    reference = Mutating()
    reference.drop.eval()
    candidate = copy.deepcopy(reference)
    (x,) = inputs()
    tensors = [x, *(t for m in (reference, candidate) for t in (*m.parameters(), *m.buffers(), m.plain))]
    before = [t.detach().clone() for t in tensors]
    versions = [t._version for t in tensors]
    flags = [m.training for m in reference.modules()]
    bound = [id(b) for b in reference.buffers()]
    rng = torch.get_rng_state()
    assert verify(reference, candidate, (x,), grads=grads).ok
    assert [t._version for t in tensors] == versions
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    assert [m.training for m in reference.modules()] == flags
    assert [id(b) for b in reference.buffers()] == bound
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in (*reference.parameters(), *candidate.parameters()))
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_dropout_in_training_uses_the_same_numbers_in_every_run() -> None:
    model = Mutating()
    result = verify(model, copy.deepcopy(model), inputs())
    assert result.ok
    assert result.leaves[0].judged
    other = copy.deepcopy(model)
    other.drop.p = 0.4
    assert not verify(model, other, inputs()).ok


def test_capture_describes_the_flat_program() -> None:
    model, (x,) = Block(), inputs()
    capture = capture_reference(model, (x,))
    assert capture.paths == ("output",)
    assert set(capture.parameters) == {n for n, _ in model.named_parameters()}
    for name, position in capture.parameters.items():
        assert capture.inputs[position].data_ptr() == model.get_parameter(name).data_ptr()
    (found,) = capture.graph(*capture.inputs)
    assert torch.equal(found, model(x))


def test_one_tensor_instead_of_a_tuple() -> None:
    from normfuse.errors import InputError

    with pytest.raises(InputError, match=r"write \(x,\)"):
        verify(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ((), {}, "the reference does not take these inputs: missing a required argument: 'input'"),
        ((torch.ones(2, 3),), {"y": 1}, "the reference does not take these inputs: .*'y'"),
    ],
)
def test_inputs_that_do_not_fit_are_told_before_anything_runs(args, kwargs, reason) -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(InputError, match=reason):
        verify(model, torch.compile(model, backend="eager"), args, kwargs)


def test_the_package_is_described_as_the_function_that_it_is_called_as() -> None:
    import inspect
    import sys

    package, function = sys.modules["normfuse.verify"], sys.modules["normfuse.verify.verify"].verify
    assert inspect.signature(package) == inspect.signature(function)
    assert inspect.getdoc(function) in (package.__doc__ or "")


class Keeps(nn.Module):
    """Writes to its input or to a buffer, returns a Python number, or as many entries as are positive."""

    def __init__(self, factor: float, what: str) -> None:
        super().__init__()
        self.factor, self.what = factor, what
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Any:
        if self.what == "buffer":
            self.mean.add_(x.mean(0) * self.factor)
        elif self.what == "input":
            return x * 1, x.mul_(self.factor)[:0]
        elif self.what == "number":
            return x * 2, self.factor
        return x * 2


@pytest.mark.parametrize("what", ["buffer", "input", "number"])
def test_what_a_call_leaves_behind_is_compared(what: str) -> None:
    x = torch.randn(3, 4)

    def same(factor: float) -> bool:
        try:
            return bool(verify(Keeps(2.0, what), Keeps(factor, what), (x.clone(),)).ok)
        except VerificationError:
            return False

    assert same(2.0)
    assert same(2.0 * (1 + 1e-7))
    assert not same(3.0)
    assert not same(2.1)


def test_sizes_that_depend_on_rounding_are_an_error_of_one_sentence() -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = (x + 1.0) - 1.0  # rounds to zero what float64 keeps
            return y[y > 0]

    with pytest.raises(VerificationError, match="another size in float64"):
        verify(Positive(), Positive(), (torch.full((4,), 1e-9),))


class Writes(Block):
    """A parameter that its own forward writes to, as a teacher that is an average does."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.average, self.step = nn.Parameter(torch.zeros(16), requires_grad=False), step

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x) + self.average
        self.average.data.add_(self.step)
        return y


@pytest.mark.parametrize(("step", "ok"), [(1.0, True), (0.0, False), (1.1, False)])
def test_parameters_that_a_call_writes_are_compared_and_put_back(step: float, ok: bool) -> None:
    reference, candidate = Writes(1.0), Writes(step)
    found = verify(reference, candidate, inputs())
    assert found.ok is ok
    assert [leaf.path for leaf in found.leaves if not leaf.ok] == ([] if ok else ["written:average"])
    assert not reference.average.any()
    assert not candidate.average.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_wrong_number_among_many_is_seen(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.Linear(16, 20_000)).to(dtype)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight[7] = other[1].bias[7] = 0  # type: ignore[index]
    assert verify(model, copy.deepcopy(model), inputs(dtype=dtype)).ok
    assert not verify(model, other, inputs(dtype=dtype)).ok


def test_a_float64_output_may_be_as_far_off_as_a_rounding_of_its_inputs_carries_it() -> None:
    """Its means are large beside its deviations, so that every order of sums gives other digits."""

    x = (1e3 + 1e-3 * inputs(dtype=torch.float64)[0],)
    model, other = (nn.LayerNorm(16).double() for _ in range(2))
    centred = nn.Sequential(Shift(), other)
    with torch.no_grad():
        assert float((model(x[0]) - centred(x[0])).norm() / model(x[0]).norm()) > 1e-12
    assert verify(model, centred, x).ok
    with torch.no_grad():
        other.weight[3] += 1e-8
    assert not verify(model, centred, x).ok


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)


class Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[torch.sin(x[:, 0] * 1e3) > 0] * 2


def test_sizes_that_depend_on_rounding_say_nothing_about_a_candidate() -> None:
    program = torch.export.export(Rows(), (torch.randn(64, 4),))
    found = verify(program, program, thorough=True)
    assert found.ok
    assert any("depends on rounding" in case.note for case in found.cases)  # type: ignore[attr-defined]


class Masked(nn.Module):
    """A rounding of its mask decides everything."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.norm = factor, nn.LayerNorm(8).double()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask == 1.0, self.factor * self.norm(x), 0.0)


def test_what_a_rounding_of_an_input_decides_is_no_excuse() -> None:
    given = (torch.randn(4, 8, dtype=torch.float64), torch.ones(4, 8, dtype=torch.float64))
    assert verify(Masked(1.0), Masked(1.0), given).ok
    assert not verify(Masked(1.0), Masked(-1.0), given).ok
    programs = [torch.export.export(Masked(factor).eval(), given) for factor in (1.0, -1.0)]
    stored = verify(*programs).cases[0]  # type: ignore[attr-defined]
    assert (stored.name, stored.ok) == ("stored", False)


class Swaps(Block):
    """Gives a parameter other memory, of another shape too, and takes a gradient away."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.grown = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        self.never = nn.Parameter(torch.empty(3, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        self.table.data = self.table.data * 2
        self.grown.data = torch.zeros(7, dtype=torch.float64)
        self.table.requires_grad_(False)
        return super().forward(x) * self.table.sum()


def test_parameters_lie_where_they_lay() -> None:
    model = Swaps()
    view = model.table.detach()
    assert not verify(model, model, inputs()).differs
    assert torch.equal(model.table, torch.ones(4))
    assert torch.equal(model.grown, torch.ones(4))
    assert model.table.data_ptr() == view.data_ptr()
    assert model.table.requires_grad


class Drowned(nn.Module):
    """In bfloat16 the sum keeps no digit of what comes in, so the norm is of nothing but rounding."""

    def __init__(self, factor: float, beside: bool) -> None:
        super().__init__()
        self.factor, self.beside, self.norm = factor, beside, nn.LayerNorm(64)
        self.ramp = nn.Buffer(torch.linspace(0, 1, 64))

    def forward(self, x: Tensor) -> Any:
        drowned = self.norm(x + 3000.0 + self.ramp) * self.factor
        return (x * 2, drowned, x.argmax(-1)) if self.beside else drowned


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("factor", [1.0, -77.0])
def test_what_could_not_be_judged_is_not_equivalent_and_says_so(beside: bool, factor: float) -> None:
    """Nothing vouches for an output for which the original is no yardstick, whatever stands beside it."""
    x = torch.randn(16, 64, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    found = verify(Drowned(1.0, beside).bfloat16(), Drowned(factor, beside).bfloat16(), (x,))
    path = "output[1]" if beside else "output"
    assert not found
    assert not found.differs
    assert found.unjudged == (path,)
    assert f"could not be judged: {path}" in str(found)
    assert "the original is itself off by" in str(found)
    told = found.to_dict()
    assert (told["ok"], told["verdict"], told["unjudged"]) == (False, "could not be judged", [path])


class Summed(Block):
    """One nan makes all of it nan."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + x.square().mean())


def test_an_output_that_no_case_judges_is_named_and_one_case_is_enough() -> None:
    x = torch.randn(16, 64, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    drowned = torch.export.export(Drowned(1.0, True).bfloat16(), (x,))
    found = verify(drowned, drowned)
    assert (found.ok, found.unjudged) == (False, ("output[1]",))
    plain = torch.export.export(Summed(), inputs())
    found = verify(plain, plain)
    assert any(not leaf.judged for leaf in found.leaves)  # on nan
    assert (found.ok, found.unjudged) == (True, ())


def test_whole_numbers_and_nothing_at_all_are_judged_exactly() -> None:
    (x,) = inputs()
    assert verify(lambda t: (t > 0, t.argmax(-1)), lambda t: (t > 0, t.argmax(-1)), (x,)).ok
    assert not verify(lambda t: t > 0, lambda t: t > 0.5, (x,)).ok
    assert verify(lambda t: t[:0] * 2, lambda t: t[:0] * 3, (x,)).ok  # there is nothing to differ in
    mask = torch.full((4, 4), float("-inf"))
    assert verify(lambda t: (t, mask + 0.0), lambda t: (t, mask), (x,)).ok
    assert not verify(lambda t: (t, mask), lambda t: (t, -mask), (x,)).ok


def test_gradients_that_are_zero_but_for_rounding_do_not_count_by_themselves() -> None:
    """That of a number that a norm takes out again is zero; the others are judged."""

    class Ahead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)
            self.shift = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x) + self.shift)

    torch.manual_seed(0)
    model = Ahead()
    found = verify(model, copy.deepcopy(model), inputs(), grads=True)
    assert [leaf.path for leaf in found.leaves if not leaf.judged] == ["grad:shift"]
    assert found.ok
