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


class Named(torch.nn.Module):
    """Its weight, which is read twice, is folded beside itself, where there is something by that name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.lin, self.norm = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)
        if kind == "module":
            self.lin.add_module("weight_folded", torch.nn.Linear(8, 8))
        elif kind == "attribute":
            self.lin.weight_folded = torch.ones(8)
        else:
            self.lin.register_buffer("weight_folded", torch.ones(8), persistent=kind == "buffer")

    def forward(self, x):
        extra = self.lin.weight_folded
        extra = extra(x) if isinstance(extra, torch.nn.Module) else extra
        return self.norm(self.lin(x)) + extra, self.lin.weight.sum()


@pytest.mark.parametrize("kind", ["module", "attribute", "buffer", "buffer that is not stored"])
def test_what_is_added_takes_no_name_that_there_is(kind, tmp_path):
    model, x = Named(kind).eval(), torch.randn(2, 8)
    made = normfuse.rewrite(model, (x,), verify="off")
    assert made.report.after == {"rms_norm": 1}
    made.save(tmp_path / "out.pt2")
    found = torch.export.load(tmp_path / "out.pt2").module()(x)
    torch.testing.assert_close(found, model(x))


def test_preserved_module_calls_are_dropped_and_that_is_said():
    model, x = (
        torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Sigmoid()),
        torch.randn(2, 8),
    )
    program = torch.export.export(model.eval(), (x,), preserve_module_call_signature=("1",))
    made = normfuse.rewrite(program)
    assert made.report.after == {"rms_norm": 1}
    assert "the call signatures of 1 are not preserved" in made.report.notes
    torch.testing.assert_close(torch.export.unflatten(made.program)(x), model(x))
    assert program.module_call_graph[2].signature is not None


def test_a_program_that_makes_no_module_is_not_handed_out(monkeypatch):
    model, x = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)), torch.randn(2, 8)
    program = torch.export.export(model.eval(), (x,))

    def fails(self):
        raise KeyError("0.weight")

    monkeypatch.setattr(torch.export.ExportedProgram, "module", fails)
    with pytest.raises(normfuse.VerificationError, match="cannot be turned into a module: KeyError"):
        normfuse.rewrite(program)
    normfuse.rewrite(program, verify="off")


class Sparse(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.norm = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)
        self.register_buffer("links", torch.eye(8).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.links, self.norm(self.lin(x)))


def test_tensors_without_memory_of_their_own_kind_are_carried_along():
    model, x = Sparse().eval(), torch.randn(8, 8)
    made = normfuse.rewrite(model, (x,))
    assert made.report.after == {"rms_norm": 1}
    assert any("sparse" in note for note in made.report.notes)
    torch.testing.assert_close(made.module()(x), model(x))
