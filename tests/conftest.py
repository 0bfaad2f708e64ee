"""Every test runs in strict mode: what a user would get as a fallback is a failure here."""

from __future__ import annotations

import gc
import os

import pytest
import torch

from normfuse.backends import evaluation

# Compiling makes many objects; looking through all those of PyTorch each time took an eighth of the time.
gc.freeze()
gc.set_threshold(100_000, 50, 100)
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # two processes of tests keep two cores busy
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMFUSE_STRICT", "1")


@pytest.fixture(autouse=True)
def _no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given once in a process, so the first test that calls for it would see one warning more."""
    monkeypatch.setattr(evaluation, "_said", True)


@pytest.fixture(autouse=True)
def _fresh_dynamo(request: pytest.FixtureRequest):
    """Compiled code of one test must not serve another one."""
    yield
    torch._dynamo.reset()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Each process runs files in their order, so that what a file makes or imports is made once.

    One that is done takes over half of what another has left.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)
