"""Models that several processes share, each compared with a copy that one process has to itself.

A case runs in every process of a group and returns what its process saw: errors against the plain model in
float64, and the codes of norms that stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import normfuse
from tests.backends.networks import PreNorm, example, prenorm
from tests.nn.zoo import MASKED, ZOO

__all__ = ["CASES", "QUICK"]

#: The errors of a case by what happened before, and the reasons of norms that stay.
Seen = dict[str, Any]
OPTIONS = {"normfuse.inner": "eager"}


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="normfuse", options={**OPTIONS, **options})


def error(found: Any, expected: torch.Tensor) -> float:
    found = found.full_tensor() if hasattr(found, "full_tensor") else found
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def stays() -> list[str]:
    """The reasons of the latest compilation, and what its notes say of a graph that was left alone."""
    report = normfuse.last_report()
    codes = {site.refusal.code for site in report.sites if site.refusal is not None}
    named = {word for word in ("DTensor", "FSDP") for note in report.notes if word in note}
    return sorted(codes | named)


def network() -> PreNorm:
    """The same in every process."""
    return prenorm(width=32).double()


def collectives() -> Seen:
    """Weights that differ between processes are made the same, synchronously and not."""
    torch.manual_seed(dist.get_rank())
    model = prenorm(seed=dist.get_rank(), width=32)
    fast, seen = compiled(model), {}
    with torch.no_grad():
        fast(example())
        for p in model.parameters():
            dist.broadcast(p, 0)
        seen["broadcast"] = error(fast(example()), model(example()))
        for work in [dist.all_reduce(p, async_op=True) for p in model.parameters()]:
            work.wait()
        seen["all_reduce"] = error(fast(example()), model(example()))
        weight = model.blocks[0].down.weight
        dist.all_gather_into_tensor(weight, weight[16:].clone())
        seen["all_gather"] = error(fast(example()), model(example()))
        one_row = [weight.clone() for _ in range(dist.get_world_size())]
        one_row[1][3] += 1e3
        dist.scatter(weight, one_row if dist.get_rank() == 0 else None, 0)
        seen["one row by scatter"] = error(fast(example()), model(example()))
        sparse = torch.eye(3).to_sparse()
        dist.all_reduce(sparse)
        seen["sparse tensors are let through"] = error(sparse.to_dense(), 2 * torch.eye(3))
    seen["stays"] = stays()
    return seen


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.register_buffer("table", torch.randn(300, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(x) + self.table[: x.shape[1]]))


def buffers() -> Seen:
    """DistributedDataParallel hands out the buffers of the first process, a few entries of them changed."""
    torch.manual_seed(0)
    model, seen = Positions().double(), {}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is model.head.bias)
    ddp, fast = nn.parallel.DistributedDataParallel(model), compiled(model)
    for step in range(3):
        model.eval()
        with torch.no_grad():
            seen[f"step {step}"] = error(fast(example()), model(example()))
        if dist.get_rank() == 0:
            model.table[step, step] += 10
        model.train()
        ddp(example()).sum().backward()
    seen["stays"] = stays()
    return seen


def running_statistics() -> Seen:
    """Layers that write buffers in the backward pass, too: all processes evaluate as the first one does."""
    seen: Seen = {}
    for name in MASKED:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), ZOO[name][0](), nn.Linear(8, 6)).double()
        ddp = nn.parallel.DistributedDataParallel(model)
        for wrapped in (ddp, compiled(ddp)):
            for step in range(3):
                torch.manual_seed(10 * step + dist.get_rank())
                wrapped.train()(torch.randn(4, 5, 6).double()).square().mean().backward()
            found = wrapped.eval()(torch.ones(1, 5, 6).double()).detach()
            first = found.clone()
            dist.broadcast(first, 0)
            seen[f"{name}, {type(wrapped).__name__}"] = error(found, first)
            dist.broadcast(first, 1)
            seen[f"{name}, {type(wrapped).__name__}, the other"] = error(found, first)
    return seen


def trained(build: Callable[[PreNorm], tuple[nn.Module, Any]], **seen: Any) -> Seen:
    """Evaluate and train in turns; ``build`` returns who has the parameters, and what is called."""
    plain, model = network(), network()
    holder, fast = build(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (plain, holder)]
    for step in range(3):
        for again in range(2):
            with torch.no_grad():
                seen[f"step {step}, call {again}"] = error(fast(example()), plain(example()))
            seen.setdefault("stays", stays())
        for one, optimizer in zip((plain, fast), optimizers, strict=True):
            one(example()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return seen


def ddp_outside() -> Seen:
    return trained(lambda m: (m, compiled(nn.parallel.DistributedDataParallel(m))))


def ddp_inside() -> Seen:
    return trained(lambda m: (m, nn.parallel.DistributedDataParallel(compiled(m))))


def _mesh() -> Any:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def fsdp1() -> Seen:
    def build(model: PreNorm) -> tuple[nn.Module, Any]:
        sharded = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        return sharded, compiled(sharded)

    return trained(build)


def _fsdp2(model: PreNorm, blocks: bool, reshard: bool) -> PreNorm:
    for block in model.blocks if blocks else ():
        fully_shard(block, mesh=_mesh(), reshard_after_forward=reshard)
    return fully_shard(model, mesh=_mesh(), reshard_after_forward=reshard)


def fsdp2_root() -> Seen:
    return trained(lambda m: (m, compiled(_fsdp2(m, False, True))))


def fsdp2_root_kept() -> Seen:
    return trained(lambda m: (m, compiled(_fsdp2(m, False, False))))


def fsdp2_blocks() -> Seen:
    return trained(lambda m: (m, compiled(_fsdp2(m, True, True))))


def fsdp2_blocks_kept() -> Seen:
    return trained(lambda m: (m, compiled(_fsdp2(m, True, False))))


def fsdp2_inside() -> Seen:
    """The forward of the root is compiled, so that its weights come from outside of the graph."""

    def build(model: PreNorm) -> tuple[nn.Module, Any]:
        model.forward = compiled(model.forward)  # type: ignore[method-assign]
        return model, _fsdp2(model, False, True)

    return trained(build)


def fsdp2_one_entry() -> Seen:
    """A step that moves a single entry of a weight: too little for any sample of what memory holds."""
    model = network()
    sharded = compiled(_fsdp2(model, False, True))
    plain, seen = network(), {}
    with torch.no_grad():
        for step in range(3):
            seen[f"step {step}"] = error(sharded(example()), plain(example()))
            plain.blocks[0].down.weight[step, 1] += 1e3
            local = model.blocks[0].down.weight.to_local()
            if dist.get_rank() == 0:
                local[step, 1] += 1e3
    return seen


def tensor_parallel() -> Seen:
    def build(model: PreNorm) -> tuple[nn.Module, Any]:
        for block in model.blocks:
            parallelize_module(block, _mesh(), {"up": ColwiseParallel(), "down": RowwiseParallel()})
        return model, compiled(model)

    return trained(build)


#: Seconds each.
QUICK = (collectives, buffers, fsdp2_root, tensor_parallel)
CASES = (
    *QUICK, ddp_outside, ddp_inside, fsdp1, fsdp2_root_kept, fsdp2_blocks, fsdp2_blocks_kept, fsdp2_inside,
    fsdp2_one_entry, running_statistics,
)  # fmt: skip
