"""The ways themselves."""

from __future__ import annotations

import copy
import ctypes
import gc

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.changes.models import Network, image, network
from tests.changes.registry import way

OPTIMIZERS = "Optimizers"
LOADING = "Loading and replacing"
IN_PLACE = "In place"
BEHIND = "Behind autograd's back"
STATISTICS = "Running statistics"
STRUCTURE = "Adapters, averages, structure"
INVALIDATE = "call `normfuse.invalidate(model)`"


def _loss(model: Network) -> torch.Tensor:
    model.train()
    loss = model(image()).square().mean()
    model.eval()
    return loss


def _step(model: Network, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    _loss(model).backward()
    optimizer.step()


def _trained(model: Network) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@way(OPTIMIZERS, "`SGD`")
def sgd(model: Network) -> None:
    _step(model, torch.optim.SGD(_trained(model), lr=0.1))


@way(OPTIMIZERS, "`SGD` with `foreach`")
def sgd_foreach(model: Network) -> None:
    _step(model, torch.optim.SGD(_trained(model), lr=0.1, foreach=True))


@way(OPTIMIZERS, "`AdamW`")
def adamw(model: Network) -> None:
    _step(model, torch.optim.AdamW(_trained(model), lr=0.1))


@way(OPTIMIZERS, "`AdamW` with `fused`, which raises no version counter")
def adamw_fused(model: Network) -> None:
    _step(model, torch.optim.AdamW(_trained(model), lr=0.1, fused=True))


@way(OPTIMIZERS, "`LBFGS`")
def lbfgs(model: Network) -> None:
    optimizer = torch.optim.LBFGS(_trained(model), lr=0.01, max_iter=2)

    def closure() -> float:
        optimizer.zero_grad()
        loss = _loss(model)
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)


@way(OPTIMIZERS, "a compiled optimizer step")
def compiled_step(model: Network) -> None:
    optimizer = torch.optim.SGD(_trained(model), lr=0.1)
    optimizer.zero_grad()
    _loss(model).backward()
    torch.compile(optimizer.step, backend="aot_eager")()


@way(OPTIMIZERS, "a fused optimizer called as a function")
def functional_fused(model: Network) -> None:
    optimizer = torch.optim.SGD(_trained(model), lr=0.1)
    optimizer.zero_grad()
    _loss(model).backward()
    weights = _trained(model)
    torch._fused_sgd_(
        weights, [p.grad for p in weights], [], weight_decay=0.0, momentum=0.0, lr=0.5, dampening=0.0,
        nesterov=False, maximize=False, is_first_step=True,
    )  # fmt: skip


@way(OPTIMIZERS, "a step by hand, `p -= lr * p.grad` under `no_grad`")
def by_hand(model: Network) -> None:
    model.zero_grad()
    _loss(model).backward()
    with torch.no_grad():
        for p in _trained(model):
            p -= 0.1 * p.grad


@way(LOADING, "`load_state_dict`")
def load(model: Network) -> None:
    model.load_state_dict(network(1).state_dict())


@way(LOADING, "`load_state_dict(assign=True)`")
def load_by_assignment(model: Network) -> None:
    model.load_state_dict(network(2).state_dict(), assign=True)


@way(LOADING, "a new `Parameter`")
def new_parameter(model: Network) -> None:
    down = model.stream.blocks[1].down
    down.weight = nn.Parameter(torch.randn_like(down.weight))


@way(LOADING, "`p.data = other`")
def new_data(model: Network) -> None:
    for p in model.parameters():
        p.data = torch.randn_like(p)


@way(LOADING, "`p.data = p.data.t()`: the same memory, read in another order")
def transposed(model: Network) -> None:
    weight = model.stream.blocks[1].down.weight
    weight.data = weight.data.reshape(128, 64).t()


@way(LOADING, "`p.set_(other)`")
def set_(model: Network) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.set_(torch.randn_like(p))


@way(LOADING, "`vector_to_parameters`")
def from_vector(model: Network) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(torch.randn_like(vector), model.parameters())


@way(LOADING, "writes to the vector that `vector_to_parameters` was given")
def through_vector(model: Network) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.parameters())
    vector.mul_(1 + 0.1 * torch.randn_like(vector))


@way(LOADING, "another dtype and back")
def dtype_and_back(model: Network) -> None:
    model.float().double()


@way(LOADING, "`model.share_memory()`, and a write through the shared memory")
def shared_memory(model: Network) -> None:
    model.share_memory()
    for p in model.parameters():
        torch.from_numpy(p.detach().numpy()).mul_(1.1)


@way(IN_PLACE, "`nn.init`")
def init(model: Network) -> None:
    nn.init.xavier_normal_(model.stream.embed.weight)


@way(IN_PLACE, "one entry under `no_grad`")
def one_entry(model: Network) -> None:
    with torch.no_grad():
        model.stream.blocks[0].down.weight[3, 5] += 10


@way(IN_PLACE, "through a view, or under `inference_mode`")
def view(model: Network) -> None:
    with torch.inference_mode():
        model.stream.blocks[0].down.weight.view(-1)[77] += 10


@way(IN_PLACE, "`torch._foreach_mul_`")
def foreach(model: Network) -> None:
    with torch.no_grad():
        torch._foreach_mul_(_trained(model), 1.1)


@way(IN_PLACE, "by another compiled function")
def compiled_write(model: Network) -> None:
    @torch.compile(backend="aot_eager")
    def write(weight: torch.Tensor) -> None:
        with torch.no_grad():
            weight.mul_(1.1)

    write(model.stream.embed.weight)


@way(IN_PLACE, "clipping the norms of rows, `torch.renorm_`")
def renorm(model: Network) -> None:
    with torch.no_grad():
        model.stream.embed.weight.renorm_(2, 0, 0.5)


@way(BEHIND, "`p.data.mul_()`, `p.data += delta`")
def data(model: Network) -> None:
    for p in model.parameters():
        p.data += torch.randn_like(p) * 0.1


@way(BEHIND, "a few entries or rows through `.data`, of a weight of more than 1 KiB", INVALIDATE)
def few_entries(model: Network) -> None:
    model.stream.blocks[0].down.weight.data[3, 5] += 1e3


@way(BEHIND, "one entry of a vector through `.data`")
def one_entry_of_a_vector(model: Network) -> None:
    model.stream.embed.bias.data[11] += 1


@way(BEHIND, "NumPy")
def numpy(model: Network) -> None:
    model.stream.embed.weight.detach().numpy()[:] *= 1.1


@way(BEHIND, "storage writes")
def storage(model: Network) -> None:
    weight = model.stream.blocks[0].down.weight
    weight.untyped_storage().copy_(torch.randn_like(weight).untyped_storage())


@way(BEHIND, "a kernel or a graph replay that writes to an address")
def address(model: Network) -> None:
    weight = model.stream.blocks[0].down.weight
    fresh = torch.randn_like(weight)
    ctypes.memmove(weight.data_ptr(), fresh.data_ptr(), fresh.nbytes)


@way(BEHIND, "under a preserved version counter, one entry")
def preserved(model: Network) -> None:
    weight = model.stream.blocks[0].down.weight
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(weight):
        weight[3, 5] += 10


@way(STATISTICS, "a training step in eager mode")
def eager_training(model: Network) -> None:
    _loss(model)


@way(STATISTICS, "a training step of the compiled model")
def compiled_training(model: Network) -> None:
    model.train()
    torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})(image())
    model.eval()


@way(STATISTICS, "`torch.optim.swa_utils.update_bn`")
def update_bn(model: Network) -> None:
    torch.optim.swa_utils.update_bn([image()], model)
    model.eval()


@way(STATISTICS, "`reset_running_stats`")
def reset(model: Network) -> None:
    model.bn1.running_mean.add_(1)
    model.bn2.reset_running_stats()


@way(STATISTICS, "`F.batch_norm` on statistics in a `[1, C]` buffer")
def in_a_row(model: Network) -> None:
    model.track(model.row.reshape(64))


@way(STATISTICS, "on rows of one buffer")
def in_rows(model: Network) -> None:
    model.track(*model.rows)


@way(STATISTICS, "on a column of a buffer")
def in_a_column(model: Network) -> None:
    model.track(model.column[:, 1])


@way(STATISTICS, "in a parameter that does not train")
def in_a_parameter(model: Network) -> None:
    model.track(model.frozen.detach())


@way(STRUCTURE, "an adapter merged and unmerged as PEFT does it, `weight.data += B @ A`")
def merged(model: Network) -> None:
    weight = model.stream.blocks[0].down.weight
    delta = torch.randn(64, 4, dtype=torch.float64) @ torch.randn(4, 128, dtype=torch.float64)
    weight.data += delta
    weight.data -= 0.5 * delta


@way(STRUCTURE, "an exponential average, swapped in and out through `.data`")
def average(model: Network) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    averaged.update_parameters(model)
    for p, mean in zip(model.parameters(), averaged.module.parameters(), strict=True):
        p.data.copy_(mean.data)


@way(STRUCTURE, "pruning, before and after it is made permanent")
def pruned(model: Network) -> None:
    down = model.stream.blocks[0].down
    prune.l1_unstructured(down, "weight", 0.3)
    prune.remove(down, "weight")


@way(STRUCTURE, "a parametrization added, and removed")
def parametrized(model: Network) -> None:
    embed = model.stream.embed
    parametrizations.weight_norm(embed)
    with torch.no_grad():
        embed.parametrizations.weight.original0.mul_(1.3)
    nn.utils.parametrize.remove_parametrizations(embed, "weight")


@way(STRUCTURE, "weights of two layers exchanged")
def exchanged(model: Network) -> None:
    first, second = model.stream.blocks
    first.down.weight, second.down.weight = second.down.weight, first.down.weight


@way(STRUCTURE, "weights tied, and untied")
def tied(model: Network) -> None:
    first, second = model.stream.blocks
    second.down.weight = first.down.weight
    second.down.weight = copy.deepcopy(first.down.weight)
    with torch.no_grad():
        second.down.weight.mul_(-1)


@way(STRUCTURE, "weights freed, and others made that may lie where they lay")
def freed(model: Network) -> None:
    down = model.stream.blocks[0].down
    down.weight = None
    gc.collect()
    down.weight = nn.Parameter(torch.randn(64, 128, dtype=torch.float64))
