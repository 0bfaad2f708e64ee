"""The kernels compiled for devices that are not here: registers, shared memory and the width of accesses."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="the kernels are written in Triton")

from bench.kernel_compile import SHARED_LIMIT, make
from bench.kernel_subjects import FORMS, TARGETS, linear_subjects, norm_subjects
from bench.kernels import everything

#: Where a rule of ``plan`` changes: two rows a tile, one, the widest in registers, blocks.
WIDTHS = (128, 1024, 8192, 16384, 65536)


def _fits(made):
    assert made.stack == 0, f"{made.kernel} spills at {made.width}"
    assert made.registers * made.warps * 32 <= 65536
    assert made.shared <= SHARED_LIMIT[made.target]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", ["rms_norm", "add_layer_norm", "gated_rms_norm"])
def test_norms_stay_in_registers_and_move_16_bytes_a_thread(form, target):
    for width in WIDTHS:
        for subject in norm_subjects(form, width, "bfloat16"):
            made = make(subject, target)
            _fits(made)
            tensors = [n for n in subject.types if n in ("x", "residual", "gate", "dy", "dtotal", "h", "weight")]
            outputs = [n for n in subject.types if n in ("y", "total", "dx", "dgate")]
            assert made.vector_loads >= len(tensors), (made, tensors)
            assert made.vector_stores >= len(outputs), (made, outputs)
            scalars = [n for n in subject.types if n in ("centres", "rstds")]
            assert made.loads - made.vector_loads <= (0 if "y" in subject.types else len(scalars)), made


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_other_dtypes_fit_too(dtype):
    for subject in norm_subjects("layer_norm", 8192, dtype):
        made = make(subject, 90)
        _fits(made)
        assert made.vector_loads > 0
        assert made.vector_stores > 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rows", [1, 64, 512, 8192])
def test_products_fit_and_copy_16_bytes_at_a_time(rows, target):
    for subject in linear_subjects(rows, 4096, 4096, "bfloat16"):
        made = make(subject, target)
        _fits(made)
        assert made.vector_loads >= 2


@pytest.mark.parametrize("width", [1, 3, 1000, 5120, 65535])
def test_any_width_compiles_aligned_or_not(width):
    for subject in norm_subjects("add_layer_norm", width, "bfloat16", is_aligned=False):
        _fits(make(subject, 90))


def test_a_spill_would_be_seen():
    """Four tiles of 32,768 values do not fit into the registers of 1,024 threads."""
    (forward, *_) = norm_subjects("add_layer_norm", 8192, "bfloat16")
    backward = next(iter(s for s in norm_subjects("add_layer_norm", 8192, "bfloat16") if "dy" in s.types))
    wide = replace(backward, width=32768, constants={**backward.constants, "WIDTH": 32768, "BLOCK": 32768})
    assert make(forward, 90).stack == 0
    assert make(wide, 90).stack > 0


def test_an_unaligned_row_would_be_seen():
    (forward, _) = norm_subjects("rms_norm", 1024, "bfloat16", is_aligned=False)
    made = make(forward, 90)
    assert made.vector_loads == made.vector_stores == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_everything_in_the_table_fits(target):
    for subject in everything():
        _fits(make(subject, target))


def test_every_form_is_in_the_table():
    named = {subject.name.rpartition(" ")[0] for subject in everything()}
    assert set(FORMS) <= named
