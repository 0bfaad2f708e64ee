"""Compiled code is removed only while no other thread looks at it: Dynamo frees it at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from normfuse.backends import threads
from normfuse.backends.threads import is_looked_up_elsewhere
from normfuse.freezing.call import FrozenCall


def seen_from_outside(start: Callable[[Callable[[], None]], Any]) -> bool:
    """What is known of a thread that is where ``start`` calls what it is given."""
    arrived, may_go = threading.Event(), threading.Event()

    def wait() -> None:
        arrived.set()
        may_go.wait(60)

    thread = threading.Thread(target=start, args=(wait,))
    thread.start()
    assert arrived.wait(60)
    found = is_looked_up_elsewhere()
    may_go.set()
    thread.join()
    return found


def test_a_thread_that_compiles_is_waited_for() -> None:
    def compiles(wait: Callable[[], None]) -> None:
        def backend(gm: Any, inputs: Any) -> Any:
            wait()
            return gm

        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))

    assert seen_from_outside(compiles)
    assert not is_looked_up_elsewhere()


def test_a_thread_that_runs_what_was_compiled_is_not() -> None:
    weight = torch.ones(2)

    def runs(wait: Callable[[], None]) -> None:
        held = {"places": (0,), "sources": [lambda: weight], "hold_for": lambda inputs: True}
        state: Any = SimpleNamespace(compiled=wait, **held)
        call = FrozenCall(state, (), torch.fx.symbolic_trace(torch.nn.Identity()), lambda: None)
        torch._dynamo.disable(lambda: call(weight))()  # through Dynamo's own frame, as compiled code is

    assert not seen_from_outside(runs)


def test_the_files_that_run_compiled_code_are_where_they_are_looked_for() -> None:
    assert FrozenCall.__call__.__code__.co_filename in threads._RUNS
