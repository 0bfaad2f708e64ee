"""More architectures with batch norm, by the recipes of the corpus: every norm vanishes, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map_only

import normfuse
from bench.corpus.worker import runnable
from tests.models.test_transformers import compiled, distance
from tests.models.vision_shapes import randomise

#: Architecture -> how many norms its tiny model has; none of them stays.
SAMPLE = {
    "conditional_detr": 12,
    "cvt": 39,
    "efficientloftr": 9,
    "pp_lcnet_v3": 146,
    "pp_ocrv5_mobile_rec": 146,
}


def widened(value: Any) -> Any:
    return value.double() if value.is_floating_point() else value


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(SAMPLE))
def test_every_batch_norm_vanishes(architecture: str) -> None:
    found = runnable(architecture)
    assert not isinstance(found, str), found
    _, model, inputs, _ = found
    model = copy.deepcopy(model).eval()
    randomise(model)
    model, inputs = model.double(), tree_map_only(torch.Tensor, widened, inputs)
    with torch.no_grad():
        assert distance(model(**inputs), compiled(model)(**inputs)) <= 1e-12
    sites = [s for s in normfuse.last_report().sites if s.kind == "batch_norm"]
    assert (len(sites), [s.refusal for s in sites if s.refusal]) == (SAMPLE[architecture], [])
