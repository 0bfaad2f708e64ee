"""What a rewrite keeps of a program, also of one that was read from a file: guards and names of inputs."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

import normfuse
from normfuse.pt2 import load_program, save_program
from tests.backends.networks import example, prenorm


class Halves(torch.nn.Module):
    """Needs an even batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm(dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.reshape(2, x.shape[0] // 2, *x.shape[1:])
        return self.inner(first + second)


def test_guards_of_a_loaded_program_are_kept(tmp_path):
    with torch.no_grad():
        program = torch.export.export(Halves(), (example(8, torch.float32),), dynamic_shapes=({0: Dim.AUTO},))
    assert program._guards_code
    save_program(program, tmp_path / "in.pt2")
    loaded = load_program(tmp_path / "in.pt2")
    rewritten = normfuse.rewrite(loaded)
    assert rewritten.report.after == {"rms_norm": 3}
    assert rewritten.program._guards_code == loaded._guards_code == program._guards_code
    rewritten.save(tmp_path / "out.pt2")
    module = load_program(tmp_path / "out.pt2").module()
    module(example(12, torch.float32))
    with pytest.raises(AssertionError, match="Guard failed"):
        module(example(7, torch.float32))


def test_inputs_keep_names_that_are_python_s_own(tmp_path):
    """``nn.Sequential`` calls its input ``input``, which a graph would not choose for a node."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)).eval()
    x = torch.randn(4, 8)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
    rewritten = normfuse.rewrite(program)
    assert rewritten.report.after == {"rms_norm": 1}
    assert rewritten.program.graph_signature.user_inputs == program.graph_signature.user_inputs == ("input",)
    path = rewritten.save(tmp_path / "out.pt2")
    assert normfuse.verify(model, load_program(path), (x,)).ok
