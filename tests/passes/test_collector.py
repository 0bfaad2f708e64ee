"""Recognition gives the garbage collector back as it was."""

from __future__ import annotations

import gc

import pytest
import torch

from normfuse.passes.collector import collector_at_rest
from tests.patterns.capturing import lifted


def test_it_is_off_inside_and_on_afterwards() -> None:
    with collector_at_rest():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_does_not_leave_it_off() -> None:
    with pytest.raises(ZeroDivisionError), collector_at_rest():
        raise ZeroDivisionError
    assert gc.isenabled()


def test_who_switched_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with collector_at_rest():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_recognition_leaves_it_on() -> None:
    lifted(lambda x: torch.nn.functional.layer_norm(x, (8,)), (torch.randn(2, 8),))
    assert gc.isenabled()
