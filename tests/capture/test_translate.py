"""A Dynamo graph as ATen operators: the same function, bit for bit, and nothing of Python's spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from normfuse.capture.autocasting import is_autocast_enabled
from normfuse.capture.translate import translate
from normfuse.errors import UncapturableError


def captured(
    function: Callable[..., Any], *args: Any, **settings: Any
) -> tuple[GraphModule, GraphModule, Any]:
    """Dynamo's graph, its translation, and the inputs that it takes."""
    found: list[Any] = []

    def keep(gm: GraphModule, _: Any) -> Any:
        found.extend((gm, translate(gm)[0]))

        def run(*inputs: Any) -> Any:
            found.append(tree_map_only(torch.Tensor, torch.clone, inputs))
            return gm(*inputs)

        return run

    torch.compile(function, backend=keep, fullgraph=True, **settings)(*args)
    assert len(found) == 3
    return found[0], found[1], found[2]


def same(function: Callable[..., Any], *args: torch.Tensor, **settings: Any) -> GraphModule:
    """The translation, after a bitwise comparison with the function on fresh copies of the arguments."""
    _, translated, inputs = captured(function, *args, **settings)
    torch.manual_seed(3)
    wanted = tree_leaves(function(*args))
    torch.manual_seed(3)
    found = tree_leaves(translated(*inputs))
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    return translated


def targets(gm: GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if n.op == "call_function"]


X = torch.linspace(-1, 1, 48).view(2, 4, 6)

FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "methods": lambda x: x.mul(2).transpose(1, 2).contiguous().view(2, -1).float(),
    "indexing": lambda x: x[:, 1:, None, ..., ::2] + x[:, 1:, None, -3:],
    "lists": lambda x: torch.cat([part * i for i, part in enumerate(x.split(2, dim=-1))], -1),
    "unpacking": lambda x: x.max(-1).values + x.topk(2)[0][..., 0] + x.unbind(1)[0].sum(),
    "composite": lambda x: F.scaled_dot_product_attention(x, x, x) + F.layer_norm(x, (6,)),
    "factories": lambda x: (
        x + torch.arange(6) + torch.zeros_like(x) + torch.full((6,), 2.0) + torch.tensor(0.5)
    ),
    "random": lambda x: F.dropout(x, 0.5, True) + torch.rand_like(x) + torch.randn(6),
    "written": lambda x: x.clone().add_(1).mul_(x).view(-1).relu_(),
    "assigned": lambda x: _assigned(x),
    "nested": lambda x: {"a": (x + 1, [x * 2]), "b": x.sum()},
    "twice_the_same": lambda x: (x * x, x * (x + 0), torch.add(x, x), torch.add(x, x, alpha=2)),
    "numbers": lambda x: x * x.shape[0] + x.numel() + x.dim(),
    "loss": lambda x: F.cross_entropy(x.flatten(0, 1), torch.arange(8) % 6),
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x),
}


def _assigned(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 0] = 1.0
    y[..., 2] += x[..., 1]
    return y


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_bitwise(name: str, dynamic: bool) -> None:
    gm = same(FUNCTIONS[name], X.clone(), dynamic=dynamic)
    named = [n.target for n in gm.graph.nodes if n.op == "call_function"]
    foreign = [t for t in named if not isinstance(t, (OpOverload, HigherOrderOperator))]
    assert all(t.__module__ in ("_operator", "math") for t in foreign)
    assert not [n for n in gm.graph.nodes if n.op in ("call_method", "call_module")]


def test_every_value_is_known() -> None:
    gm = same(FUNCTIONS["composite"], X)
    assert all("val" in n.meta for n in gm.graph.nodes if n.op != "output")


def test_composite_operators_stay_whole() -> None:
    names = targets(same(lambda x: F.layer_norm(F.linear(x, x[0]), (4,)) + F.rms_norm(x, (6,)).sum(), X))
    assert {"aten.layer_norm.default", "aten.linear.default", "aten.rms_norm.default"} <= set(names)


def test_calls_alike_are_told_apart_by_what_they_read() -> None:
    gm = same(lambda x: (x.contiguous(), x.transpose(0, 1).contiguous(), x.float(), x.double().float()), X)
    assert targets(gm).count("aten.contiguous.default") == 1
    assert len([t for t in targets(gm) if t.startswith("aten.to.")]) == 3


def test_repeated_calls_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from normfuse.capture import translate as module

    runs: list[str] = []
    traced = module._Translator._traced

    def counted(self: Any, node: Any, *rest: Any) -> Any:
        runs.append(node.name)
        return traced(self, node, *rest)

    monkeypatch.setattr(module._Translator, "_traced", counted)
    weight = torch.eye(6)

    def deep(x: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            x = F.linear(torch.tanh(x), weight)
        return x

    gm = same(deep, X)
    assert targets(gm).count("aten.linear.default") == 10
    assert len(runs) <= 3


def test_graphs_inside_are_carried_over() -> None:
    gm = same(lambda x: checkpoint(torch.sin, x * 2, use_reentrant=False) + 1, X)
    assert [n for n in gm.graph.nodes if isinstance(n.target, HigherOrderOperator)]


def autocast(x: torch.Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = F.linear(x, x[0])
        with torch.autocast("cpu", enabled=False):
            z = F.linear(x, x[1])
        a = torch.einsum("bij,bkj->bik", x, x)
        b = F.scaled_dot_product_attention(x, x, x)
        return y, z, a, b, F.layer_norm(x, (6,)), x.softmax(-1), torch.cat([x, y], -1), x + y[..., :1]


def test_autocast_becomes_casts() -> None:
    gm = same(autocast, X)
    assert not any("autocast" in t for t in targets(gm))
    assert "aten.to.dtype" in targets(gm)
    assert "aten.layer_norm.default" in targets(gm)
    assert not is_autocast_enabled()


def test_autocast_around_the_call_becomes_casts() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, gm, inputs = captured(lambda x: F.linear(x, x[0]) @ x, X)
        wanted = F.linear(X, X[0]) @ X
        assert is_autocast_enabled()
    assert torch.equal(tree_leaves(gm(*inputs))[0], wanted)


def test_a_carried_operator_still_runs_under_autocast() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return checkpoint(lambda v: F.linear(v, v[0]), x, use_reentrant=False)

    assert same(run, X)(X)[0].dtype == torch.bfloat16


def test_gradients_flow_as_before() -> None:
    weight = torch.randn(6, 6, requires_grad=True)

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scale = (x @ w).abs().mean()
        return (F.layer_norm(x @ w, (6,)) * scale).square().sum() + (x @ w.detach()).sum()

    _, gm, inputs = captured(run, X, weight)
    (found,) = torch.autograd.grad(tree_leaves(gm(*inputs))[0], weight)
    (wanted,) = torch.autograd.grad(run(X, weight), weight)
    assert torch.equal(found, wanted)


def test_sizes_are_nodes() -> None:
    gm = same(
        lambda x: x.reshape(x.shape[0] * x.shape[1], -1).expand(3, -1, -1) * (x.shape[0] + 1), X, dynamic=True
    )
    numbers = [
        a
        for n in gm.graph.nodes
        for a in tree_leaves(n.args)
        if isinstance(a, (torch.SymInt, torch.SymFloat))
    ]
    assert not numbers


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(Exception, match="changes the shape of a tensor in place") as caught:
        captured(lambda x: x.clone().unsqueeze_(0), X)
    assert "UncapturableError" in str(caught.type) or UncapturableError.__name__ in str(caught.value)
