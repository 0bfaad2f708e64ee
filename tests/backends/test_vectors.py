"""What Inductor's cache holds for longer or shorter vectors is not taken: its values would be wrong."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch._inductor import config, cpu_vec_isa
from torch._inductor.cpu_vec_isa import pick_vec_isa

from normfuse.inductor_compat import vectors_of_processor

CAPABILITIES = ("default", "avx2", "avx512")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_setting_changes_nothing(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which a processor that does not have it causes
        wanted = pick_vec_isa()
        settings = vectors_of_processor([2, torch.ones(2)])
    assert settings.keys() == {"cpp.simdlen"}
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "")
    with config.patch(settings):
        assert pick_vec_isa() == wanted


def test_a_width_that_is_chosen_stays() -> None:
    with config.patch({"cpp.simdlen": 256}):
        assert vectors_of_processor([torch.ones(2)]) == {}


def test_nothing_is_set_where_widths_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or where nothing is on a CPU."""
    assert vectors_of_processor([1, torch.ones(2, device="meta")]) == {}
    isa, other = cpu_vec_isa.VecAVX512(), cpu_vec_isa.VecNEON()
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", lambda: isa)
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", lambda: [other, isa])
    monkeypatch.setattr(type(other), "bit_width", lambda self: isa.bit_width())
    assert vectors_of_processor([torch.ones(2)]) == {}


_PROGRAM = """
import torch
x = torch.linspace(-3, 3, 96)
fast = torch.compile(lambda x: torch.relu(x) * 2, backend="normfuse")
found = torch._dynamo.utils.counters["inductor"]
assert torch.equal(fast(x), torch.relu(x) * 2)
print(found["fxgraph_cache_hit"])
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names are those of x86")
def test_a_cache_that_processors_share(tmp_path: Path) -> None:
    hits = []
    for capability in ("", "avx2", "", "avx2"):
        made = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "ATEN_CPU_CAPABILITY": capability}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PROGRAM], env={**os.environ, **made},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        hits.append(done.stdout.strip())
    assert hits[2:] == ["1", "1"]
