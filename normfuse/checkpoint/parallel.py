"""Work on several tensors at a time, each on one thread: the bytes do not depend on how many there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["side_by_side"]

_T = TypeVar("_T")

#: Beyond so many the disk is what one waits for.
_MOST = 8


def side_by_side(work: Callable[[_T], None], items: Iterable[_T]) -> None:
    """Do the work for each item; the first error is raised, and what has not begun by then is left."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(_MOST, usable)
    with _one_thread_each(), ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
