"""Real architectures with the rules' results in their own weights."""

from __future__ import annotations

import copy

import pytest
import torch

import normfuse
from tests.models.test_bare_norms import ALSO
from tests.models.test_transformers import compiled, distance
from tests.models.zoo import ZOO, build

#: How many explicit centrings are left to a compiler: one behind each table that is tied.
CENTRINGS = {"gpt2": 1, "opt": 1, "gpt_neox": 0, "llama": 0, "vit": 0, "beit": 0, "dinov2": 0, "whisper": 1}
USUAL = ("gpt2", "opt", "gpt_neox", "llama", "vit")


@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in CENTRINGS]
)
def test_values_are_equal_in_float64_and_nothing_is_copied(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1e-12: as in :mod:`tests.models.test_transformers`."""
    monkeypatch.setitem(ZOO, "vit", ALSO["vit"])
    model, args, kwargs = build(name, torch.float64)
    before = copy.deepcopy(model)
    done = normfuse.apply(model, args, kwargs, paths="shown", verify="off", keep_originals=True)
    fast = compiled(model)
    with torch.no_grad():
        expected = before(*args, **kwargs)
        assert distance(expected, model(*args, **kwargs)) <= 1e-12
        assert distance(expected, fast(*args, **kwargs)) <= 1e-12
    report = normfuse.last_report(fast)
    assert (report.after, report.centrings) == (ZOO[name].after, CENTRINGS[name])
    vectors = 101 * 8 if name == "gpt_neox" else 0  # the head has no bias for that of the last norm
    assert report.copied_bytes == vectors
    done.undo()
    assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))


@pytest.mark.parametrize(
    "name", [n if n == "gpt2" else pytest.param(n, marks=pytest.mark.slow) for n in USUAL]
)
def test_errors_stay_within_the_budget(name: str) -> None:
    """``apply`` itself compares the outputs before it writes."""
    model, args, kwargs = build(name)
    before = copy.deepcopy(model)
    normfuse.apply(model, args, kwargs, paths="shown")
    with torch.no_grad():
        found = normfuse.verify(before, model, args, kwargs)
    assert found.ok, str(found)
    assert found.error_ratio <= 1.5


#: Modules that compute an RMSNorm, and those whose lookups are centred for it. BLOOM centres behind a norm.
PARTS = {
    "gpt2": (5, ["transformer.wte"]),
    "opt": (5, ["model.decoder.embed_tokens"]),
    "falcon": (3, ["transformer.word_embeddings"]),
    "gpt_neox": (5, []),
    "phimoe": (5, []),
    "swin": (6, []),
    "bloom": (0, []),
}


@pytest.mark.parametrize(
    "name", [n if n in ("gpt2", "bloom") else pytest.param(n, marks=pytest.mark.slow) for n in PARTS]
)
def test_norm_modules_compute_an_rms_norm(name: str) -> None:
    model, args, kwargs = build(name, torch.float64)
    before = copy.deepcopy(model)
    done = normfuse.apply(model, args, kwargs, paths="shown", verify="off", norms="rms_norm")
    assert (len(done.parts.norms), [*done.parts.lookups]) == PARTS[name]
    with torch.no_grad():
        assert distance(before(*args, **kwargs), model(*args, **kwargs)) <= 1e-12


def test_hidden_states_are_a_call_of_their_own() -> None:
    model, args, kwargs = build("gpt2", torch.float64)
    before, more = copy.deepcopy(model), {**kwargs, "output_hidden_states": True}
    done = normfuse.apply(model, args, kwargs, paths="shown", verify="off", also=[(args, more)])
    assert "transformer.h.0.mlp.c_proj.weight" in done.left
    with torch.no_grad():
        assert distance(before(*args, **more), model(*args, **more)) <= 1e-12
