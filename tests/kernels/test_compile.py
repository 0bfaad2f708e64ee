"""The kernels compiled for devices that are not here: registers, shared memory and the width of accesses."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="the kernels are written in Triton")

from bench.kernel_compile import SHARED_LIMIT, SPILL_LIMIT, make
from bench.kernel_subjects import FORMS, TARGETS, linear_subjects, norm_subjects
from bench.kernels import everything

DATA = {"x", "residual", "gate", "dy", "dtotal", "h", "weight"}
RESULTS = {"y", "total", "dx", "dgate", "weight_sums", "bias_sums"}


def fits(made):
    assert made.stack <= SPILL_LIMIT, f"{made.kernel} spills {made.stack} bytes a thread at {made.width}"
    assert made.registers * made.warps * 32 <= 65536
    assert made.shared <= SHARED_LIMIT[made.target]


def moves_16_bytes(subject, made):
    """What there is once a row is read alone, and the rest in full width."""
    single = {"centres", "rstds"} & set(subject.types) if "y" not in subject.types else set()
    assert made.vector_loads >= len(DATA & set(subject.types)), made
    assert made.vector_stores >= len(RESULTS & set(subject.types)), made
    assert made.loads - made.vector_loads <= len(single) * subject.constants["ROWS"], made


@pytest.mark.parametrize(
    ("form", "target", "widths"),
    [
        ("add_layer_norm", 80, (4096,)),
        ("add_layer_norm", 90, (1024, 8192, 65536)),
        ("add_layer_norm", 100, (4096,)),
        ("gated_rms_norm", 90, (4096, 65536)),
    ],
)
def test_norms_stay_in_registers_and_move_16_bytes_a_thread(form, target, widths):
    for width in widths:
        for subject in norm_subjects(form, width, "bfloat16"):
            made = make(subject, target)
            fits(made)
            moves_16_bytes(subject, made)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_other_dtypes_fit_too(dtype):
    for subject in norm_subjects("layer_norm", 4096, dtype):
        made = make(subject, 90)
        fits(made)
        assert made.vector_loads > 0
        assert made.vector_stores > 0


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_products_fit_and_copy_16_bytes_at_a_time(target, adds):
    for rows in (1, 8192):
        subject = next(iter(linear_subjects(rows, 4096, 4096, "bfloat16", adds)))
        made = make(subject, target)
        fits(made)
        assert made.vector_loads >= 2


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_products_in_float32_fit_in_either_precision(precision):
    for rows in (1, 8192):
        fits(make(next(iter(linear_subjects(rows, 4096, 4096, "float32", True, precision))), 90))


@pytest.mark.parametrize("width", [1, 1000, 65535])
def test_any_width_compiles_aligned_or_not(width):
    for subject in norm_subjects("add_layer_norm", width, "bfloat16", is_aligned=False):
        fits(make(subject, 90))


def test_a_spill_would_be_seen():
    """Four tiles of 32,768 values do not fit into the registers of 1,024 threads."""
    backward = next(s for s in norm_subjects("add_layer_norm", 8192, "bfloat16") if "backward" in s.name)
    wide = replace(backward, width=32768, constants={**backward.constants, "WIDTH": 32768, "BLOCK": 32768})
    assert make(wide, 90).stack > SPILL_LIMIT


def test_an_unaligned_row_would_be_seen():
    made = make(next(norm_subjects("rms_norm", 1024, "bfloat16", is_aligned=False)), 90)
    assert made.vector_loads == made.vector_stores == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_everything_in_the_table_fits(target):
    for subject in everything():
        fits(make(subject, target))


def test_every_form_is_in_the_table():
    named = {subject.name.rpartition(" ")[0] for subject in everything()}
    assert set(FORMS) <= named
