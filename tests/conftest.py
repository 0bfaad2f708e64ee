"""Every test runs in strict mode: what a user would get as a fallback is a failure here."""

from __future__ import annotations

import gc
import os

import pytest
import torch

from normfuse.analysis import step_costs
from normfuse.backends import evaluation

# Compiling makes many objects; looking through all those of PyTorch each time took an eighth of the time.
gc.set_threshold(100_000, 50, 100)
os.environ.setdefault("TORCH_DYNAMO_RUN_GC_AFTER_COMPILE", "0")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # two processes of tests keep two cores busy
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_collection_finish() -> None:
    """No test owns what is there by now: a collection that one asks for need not look at it."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _everywhere(tmp_path_factory: pytest.TempPathFactory):
    """What holds in every test, unless the test itself changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMFUSE_STRICT", "1")
        # The hint is given once in a process, so the first test that calls for it would see one warning more.
        patch.setattr(evaluation, "_said", True)
        # What somebody measured on this machine must not decide what pays.
        patch.setattr(step_costs, "cache_folder", lambda: tmp_path_factory.getbasetemp() / "nothing")
        # Dynamo times the guards of all that it compiles, for its log, and empties caches for that: 20 ms.
        patch.setattr(torch._dynamo.guards, "profile_guard_manager", lambda *_: 0.0, raising=False)
        yield


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
