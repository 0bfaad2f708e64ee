"""What goes wrong inside normfuse is never the user's problem."""

from __future__ import annotations

import pytest
import torch

import normfuse
from normfuse.backends import compile as compile_module
from tests.backends.networks import example, prenorm

EAGER = {"normfuse.inner": "eager"}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(compile_module, "run_pipeline", explode)


@pytest.mark.usefixtures("broken")
def test_one_warning_and_the_original_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMFUSE_STRICT", "0")
    model = prenorm()
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options=EAGER)
    with torch.no_grad(), pytest.warns(UserWarning, match="RuntimeError: planted") as caught:
        assert torch.equal(fast(example()), model(example()))
    assert len([w for w in caught if "normfuse" in str(w.message)]) == 1
    assert "planted" in normfuse.last_report().notes[0]


@pytest.mark.usefixtures("broken")
def test_strict_raises() -> None:
    with torch.no_grad(), pytest.raises(Exception, match="planted"):
        torch.compile(prenorm(), backend=normfuse.normfuse_backend, options=EAGER)(example())


def test_training_behind_a_frozen_stream_pays() -> None:
    """The weights that write the stream are folded once and not at every step."""
    model = prenorm()
    for parameter in (*model.embed.parameters(), *model.blocks.parameters()):
        parameter.requires_grad_(False)
    fast = torch.compile(
        model, backend=normfuse.normfuse_backend, options={**EAGER, "normfuse.inner": "aot_eager"}
    )
    fast(example()).sum().backward()
    assert normfuse.last_report().after == {"rms_norm": 3}
    assert model.head.weight.grad is not None


def test_training_on_a_cpu_does_not_pay() -> None:
    model = prenorm()
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options=EAGER)
    fast(example()).square().sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model(example()).square().sum().backward()
    assert all(torch.equal(p.grad, expected[n]) for n, p in model.named_parameters())
    assert {s.refusal.code for s in normfuse.last_report().sites} == {"does_not_pay"}


def test_wrong_inputs_raise_what_the_model_raises() -> None:
    fast = torch.compile(prenorm(), backend=normfuse.normfuse_backend, options=EAGER)
    with torch.no_grad(), pytest.raises(Exception, match=r"(?i)shape|mat1|size"):
        fast(torch.randn(4, 6, 9, dtype=torch.float64))


class Doubled(torch.Tensor):
    """A tensor whose memory holds half of what it stands for."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> torch.Tensor:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Doubled(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner.detach())
        plain = torch.utils._pytree.tree_map_only(Doubled, lambda t: t.inner * 2, (args, kwargs or {}))
        return func(*plain[0], **plain[1])


def test_subclass_weights_are_refused() -> None:
    model = prenorm()
    weight = model.embed.weight.detach()
    model.embed.weight = torch.nn.Parameter(Doubled(weight / 2), requires_grad=False)
    fast = torch.compile(
        model, backend=normfuse.normfuse_backend, options=EAGER | {"normfuse.policy": "pays"}
    )
    with torch.no_grad():
        assert torch.allclose(fast(example()), model(example()), rtol=1e-12)
    codes = {s.refusal.code for s in normfuse.last_report().sites if s.refusal}
    assert codes == {"weight_subclass"}


class Packed(Doubled):
    """One whose linear layer reads what it holds, as those of quantized models do."""

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Packed(inner["inner"])

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.linear:
            given, weight, bias = args
            return torch.nn.functional.linear(given, weight.inner * 2, bias)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("autocast", [False, True])
def test_a_weight_that_is_looked_into_leaves_the_rest_of_the_graph(autocast) -> None:
    """One centring stands behind what it writes, and the norm that it reads keeps its weight."""
    model = prenorm()
    for layer in (model.embed, model.blocks[0].up):
        layer.weight = torch.nn.Parameter(Packed(layer.weight.detach() / 2), requires_grad=False)
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options=EAGER)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, wanted = fast(example()), model(example())
    assert torch.allclose(found, wanted, rtol=2**-5 if autocast else 1e-12)
    report = normfuse.last_report()
    assert (report.found, report.after, report.centrings) == ({"layer_norm": 3}, {"rms_norm": 3}, 1)
    kept = [site.refusals["fold_scale"] for site in report.sites if "fold_scale" not in site.rules]
    assert [refusal.code for refusal in kept] == ["weight_subclass"]
    assert "blocks.0.up.weight" in kept[0].message
    assert "a Packed and no plain tensor" in kept[0].message


def test_weights_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = prenorm()
        fast = torch.compile(model, backend=normfuse.normfuse_backend, options=EAGER)
        assert torch.allclose(fast(example()), model(example()), rtol=1e-12)
    assert {s.refusal.code for s in normfuse.last_report().sites} == {"weight_untracked"}


def test_verify_output_accepts_what_is_right() -> None:
    model = prenorm()
    fast = torch.compile(
        model, backend=normfuse.normfuse_backend, options=EAGER | {"normfuse.verify": "output"}
    )
    with torch.no_grad():
        assert torch.allclose(fast(example()), model(example()), rtol=1e-12)
    assert normfuse.last_report().after == {"rms_norm": 3}


def test_verify_output_rejects_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from normfuse.folding.recipe import Recipe

    compute = Recipe.compute
    monkeypatch.setattr(Recipe, "compute", lambda self, sources: compute(self, sources) * 1.001)
    monkeypatch.setenv("NORMFUSE_STRICT", "0")
    model = prenorm()
    fast = torch.compile(
        model, backend=normfuse.normfuse_backend, options=EAGER | {"normfuse.verify": "output"}
    )
    with torch.no_grad(), pytest.warns(UserWarning, match="times as far from float64"):
        assert torch.equal(fast(example()), model(example()))
    assert normfuse.last_report().after == {}
