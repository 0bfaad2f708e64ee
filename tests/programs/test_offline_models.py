"""Programs of whole models: rewritten, written, and run in a process where normfuse cannot be imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.fx import Node

import normfuse
from tests.programs.models import SUBJECTS, exported, other_inputs

pytestmark = pytest.mark.models
pytest.importorskip("transformers")

#: Runs every program of a folder on the inputs beside it.
RUNNER = """
import sys, torch
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'normfuse':
            raise ImportError('normfuse is blocked')
sys.meta_path.insert(0, Blocked())
try:
    import normfuse
except ImportError:
    pass
else:
    raise SystemExit('normfuse is not blocked')
import transformers.modeling_outputs  # the classes that the originals return
for name in sys.argv[2:]:
    program = torch.export.load(f'{sys.argv[1]}/{name}.pt2')
    args, kwargs = torch.load(f'{sys.argv[1]}/{name}.inputs')
    with torch.no_grad():
        torch.save(tuple(program.module()(*args, **kwargs).to_tuple()), f'{sys.argv[1]}/{name}.outputs')
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """For each subject the original, the program, what it became, and its outputs in the other process."""
    folder = tmp_path_factory.mktemp("offline")
    made = {}
    for name in SUBJECTS:
        model, program = exported(name)
        rewritten = normfuse.rewrite(program)
        rewritten.save(folder / f"{name}.pt2")
        kwargs = program.example_inputs[1]
        torch.save((other_inputs(name), kwargs), folder / f"{name}.inputs")
        made[name] = (model, program, rewritten, kwargs)
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(folder), *SUBJECTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = {name: torch.load(folder / f"{name}.outputs") for name in SUBJECTS}
    return {name: (*made[name], outputs[name]) for name in SUBJECTS}


@pytest.mark.parametrize("name", SUBJECTS)
def test_programs_run_without_normfuse_and_agree_in_float64(offline, name):
    """float64: every output within 1e-11 of its own norm, for a batch and a length that were not exported."""
    model, _, _, kwargs, outputs = offline[name]
    with torch.no_grad():
        expected = model(*other_inputs(name), **kwargs).to_tuple()
    assert len(outputs) == len(expected)
    for found, wanted in zip(outputs, expected, strict=True):
        assert torch.linalg.vector_norm(found - wanted) <= 1e-11 * torch.linalg.vector_norm(wanted)


@pytest.mark.parametrize("name", ["gpt2", "opt", "vit"])
def test_no_layer_norm_is_left(offline, name):
    rewritten = offline[name][2]
    assert rewritten.report.after == {"rms_norm": 5}
    assert not [
        n for n in rewritten.program.graph.nodes if "layer_norm" in str(n.target) and n.op != "placeholder"
    ]


@pytest.mark.parametrize("name", SUBJECTS)
def test_signature_and_constraints_are_kept(offline, name):
    _, program, rewritten, _, _ = offline[name]
    made = rewritten.program
    assert made.graph_signature.user_inputs == program.graph_signature.user_inputs
    assert made.call_spec.in_spec == program.call_spec.in_spec
    assert made.call_spec.out_spec == program.call_spec.out_spec
    assert made.range_constraints == program.range_constraints
    assert made._guards_code == program._guards_code
    assert set(program.state_dict) <= set(made.state_dict)
    stored, kept = program.example_inputs, made.example_inputs
    assert torch.equal(stored[0][0], kept[0][0])
    calls = [n.target for n in made.graph.nodes if n.op == "call_function"]
    assert all(isinstance(t, torch._ops.OpOverload) or t.__module__ == "_operator" for t in calls)
    assert all(isinstance(n, Node) for n in made.graph.nodes)


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_error_ratio_in_float32(name, tmp_path):
    model, program = exported(name, torch.float32)
    path = normfuse.rewrite(program).save(tmp_path / "out.pt2")
    loaded = normfuse.pt2.load_program(path)
    found = normfuse.verify(model, loaded, other_inputs(name, torch.float32), program.example_inputs[1])
    assert found.ok
    assert found.error_ratio <= 1.5
