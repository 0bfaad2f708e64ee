"""Every test runs in strict mode: what a user would get as a fallback is a failure here."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMFUSE_STRICT", "1")


@pytest.fixture(autouse=True)
def _fresh_dynamo(request: pytest.FixtureRequest):
    """Compiled code of one test must not serve another one."""
    yield
    torch._dynamo.reset()
