"""One process of a group: ``python -m tests.distributed.worker RANK SIZE STORE CASE...``; prints JSON."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

from tests.distributed import cases


def main(rank: int, size: int, store: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{store}")
    seen = {}
    for name in names:
        torch._dynamo.reset()
        seen[name] = getattr(cases, name)()
        dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
