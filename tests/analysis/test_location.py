"""Nodes in the words of the user's model: module paths, source lines, and descriptions in refusals."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.fx import Graph

import normfuse
from normfuse.ir.location import attribute_path, module_path, source_line


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("L['self'].h.0.ln_1", "h.0.ln_1"),
        ("L['s'].blocks[0].fn[1]", "blocks.0.fn.1"),
        (
            "L['self'].__dict__['_modules']['base_model'].__dict__['_modules']['model'].fc",
            "base_model.model.fc",
        ),
        ("L['self']._modules['h']._modules['0']._parameters['weight']", "h.0.weight"),
        ("L['module']._old_forward.__self__.seq", "seq"),
        ("L['fn'].__closure__[0].cell_contents.norm", "norm"),
        ("L['self']._orig_mod._fsdp_wrapped_module.norm", "norm"),
        ("G['model']._checkpoint_wrapped_module.norm", "norm"),
        ("blocks.0.norm@1", "blocks.0.norm"),
        ("L['x']", ""),
        ("", ""),
    ],
)
def test_attributes_without_the_mechanism(text: str, path: str) -> None:
    assert attribute_path(text) == path


@pytest.mark.parametrize(("wrapper", "path"), [(nn.DataParallel, "norm"), (nn.Sequential, "module.norm")])
def test_the_module_of_a_wrapper_has_no_name_of_its_own(wrapper: type, path: str) -> None:
    node = Graph().placeholder("x")
    outer = ("L['self'].module", object) if wrapper is nn.Sequential else ("L['self']", wrapper)
    node.meta["nn_module_stack"] = {"0": outer, "1": ("L['self'].module.norm", nn.LayerNorm)}
    assert module_path(node) == path


SITE = "/v/lib/python3.11/site-packages"


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (["/me/model.py", f"{SITE}/torch/nn/modules/normalization.py"], "/me/model.py:1"),
        ([f"{SITE}/transformers/gpt2.py", "/dist-packages/torch/a.py"], f"{SITE}/transformers/gpt2.py:1"),
        (["/me/train.py", "/me/model.py", f"{SITE}/accelerate/hooks.py"], "/me/model.py:2"),
        (["/me/model.py", "/src/pytorch/torch/nn/modules/linear.py", "<string>"], "/me/model.py:1"),
        (
            [f"{SITE}/torch/nn/modules/transformer.py", f"{SITE}/torch/nn/modules/normalization.py"],
            f"{SITE}/torch/nn/modules/transformer.py:1",
        ),
        ([f"{SITE}/torch/nn/modules/normalization.py"], ""),
        (["C:\\me\\model.py", "C:\\site-packages\\torch\\nn\\functional.py"], "C:\\me\\model.py:1"),
        ([], ""),
    ],
)
def test_the_line_that_somebody_wrote(files: list[str], shown: str) -> None:
    node = Graph().placeholder("x")
    node.meta["stack_trace"] = "".join(f'  File "{f}", line {n + 1}, in f\n' for n, f in enumerate(files))
    assert source_line(node) == shown


class Outer(nn.Module):
    """Looks its modules up itself, as the wrappers of PEFT and diffusers do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_model(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x + self.fc(x)
        return self.norm(total), total


def line_of(text: str) -> int:
    lines, first = inspect.getsourcelines(Model)
    return next(first + n for n, line in enumerate(lines) if text in line)


@pytest.mark.parametrize("door", ["compiled", "exported"])
def test_a_site_and_its_reason_name_module_operator_and_line(door: str) -> None:
    model, x = Outer(Outer(Model())).eval(), torch.randn(2, 8)
    if door == "compiled":
        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})(x)
        report = normfuse.last_report()
    else:
        report = normfuse.rewrite(model, (x,), verify="off").report
    (site,) = report.sites
    assert site.module == "base_model.base_model.norm"
    assert site.source == f"{__file__}:{line_of('self.norm(total)')}"
    assert site.refusal is not None
    assert site.refusal.code == "stream_is_output"
    where = f"test_location.py:{line_of('total = x')}"
    assert f"the sum in base_model.base_model (add, {where})" in site.refusal.message
    assert re.fullmatch(r"\w+", site.refusal.node)


class Layer(nn.Module):
    """Has a name and no place among ``named_modules``, as the layers of Keras."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (8,), self.norm.weight)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [{"operation": Layer("encoder/first")}, {"operation": Layer("encoder/second")}]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step["operation"](x)
        return x


class Hooked(nn.Module):
    """``forward`` replaced on the instance, as accelerate does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for module in model.modules():
            module._old_forward = module.forward  # type: ignore[assignment]
            module.forward = functools.partial(called_by_hook, module)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def called_by_hook(module: Any, *args: Any) -> Any:
    return module._old_forward(*args)


@pytest.mark.parametrize(
    ("model", "modules"),
    [
        (Layers(), ["encoder.first", "encoder.second"]),
        (Hooked(Model()), ["model.norm"]),
        (nn.DataParallel(Model()), ["norm"]),
        (nn.Sequential(nn.Sequential(), checkpoint_wrapper(Model())), ["1.norm"]),
    ],
    ids=["Layers", "Hooked", "DataParallel", "CheckpointWrapper"],
)
def test_modules_have_the_names_that_their_model_gives_them(model: nn.Module, modules: list[str]) -> None:
    with torch.no_grad():
        fast = torch.compile(model.eval(), backend="normfuse", options={"normfuse.inner": "eager"})
        fast(torch.randn(2, 8))
    assert [site.module for site in normfuse.last_report(fast).sites] == modules
