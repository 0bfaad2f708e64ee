"""Forty architectures, one at least of each way to write a norm: nothing is missed and nothing is wrong.

The whole population is in ``bench/results/corpus.csv``; ``python -m bench.corpus`` makes it.
"""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING

from bench.corpus.capturing import by_export
from bench.corpus.exceptions import cause
from bench.corpus.worker import runnable

#: Architecture -> the kinds that its tiny model has.
SAMPLE = {
    "afmoe": {"rms_norm": 13},
    "aimv2": {"rms_norm": 11, "l2_norm": 2},
    "bit": {"weight_standardization": 17, "instance_norm": 1, "group_norm": 12},
    "cohere2_moe": {"layer_norm": 3},
    "conditional_detr": {"batch_norm": 12, "layer_norm": 11},
    "convnext": {"layer_norm": 9},
    "cpmant": {"rms_norm": 5},
    "deberta": {"layer_norm": 5},
    "deepseek_v3": {"rms_norm": 9},
    "dinov2_with_registers": {"layer_norm": 5},
    "falcon_h1": {"rms_norm": 5},
    "gemma2": {"rms_norm": 9},
    "gradium_phonon_tts": {"layer_norm": 5},
    "helium": {"rms_norm": 5},
    "hubert": {"layer_norm": 6, "instance_norm": 1},
    "hy_v4": {"rms_norm": 14, "layer_norm": 2},
    "ibert": {"layer_norm": 5},
    "imagegpt": {"rms_norm": 5},
    "kimi_linear": {"rms_norm": 7, "l2_norm": 2},
    "lfm2": {"rms_norm": 9},
    "llama": {"rms_norm": 5},
    "mamba2": {"rms_norm": 5},
    "muse_spark_text": {"rms_norm": 20},
    "nanochat": {"rms_norm": 10},
    "nemotron": {"layer_norm": 5},
    "nemotron_h": {"rms_norm": 6},
    "olmo": {"layer_norm": 5},
    "olmo2": {"rms_norm": 9},
    "olmo_hybrid": {"rms_norm": 8, "l2_norm": 2},
    "pe_audio_encoder": {"group_norm": 2, "rms_norm": 9},
    "pocket_tts": {"layer_norm": 5},
    "poolformer": {"group_norm": 8},
    "qwen3_next": {"rms_norm": 8, "l2_norm": 2},
    "reformer": {"layer_norm": 5, "l2_norm": 1},
    "resnet": {"batch_norm": 17},
    "squeezebert": {"layer_norm": 5},
    "t5": {"rms_norm": 12},
    "vitdet": {"layer_norm": 4},
    "xlstm": {"rms_norm": 5, "layer_norm": 2},
    "zaya": {"rms_norm": 11},
}


#: Many seconds each; they combine kinds that others have one at a time.
SLOW = {
    "conditional_detr", "falcon_h1", "hy_v4", "kimi_linear", "muse_spark_text", "olmo_hybrid", "qwen3_next",
    "xlstm", "zaya",
}  # fmt: skip
EACH = [pytest.param(a, marks=[pytest.mark.slow] if a in SLOW else []) for a in sorted(SAMPLE)]


@pytest.mark.models
@pytest.mark.parametrize("architecture", EACH)
def test_every_norm_is_lifted(architecture: str) -> None:
    if architecture not in CONFIG_MAPPING:
        pytest.skip("the installed transformers does not have it")
    found = runnable(architecture)
    assert not isinstance(found, str), found
    _, model, inputs, _ = found
    score, _ = by_export(model, inputs)
    assert score.kinds == SAMPLE[architecture]
    assert [m for m in score.missed if cause(architecture, m) is None] == []
    assert (score.wrong, score.refused, score.bitwise) == ([], {}, True)
    assert score.lifted == score.present
