"""Tiny models of ``transformers`` that normalize by stored statistics, and how many of those norms stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.models.vision_shapes import randomise

STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 24]}
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}


@dataclass(frozen=True)
class Entry:
    """``left`` are the reasons of the norms that stay, with how many there are of each."""

    model: str
    config: dict[str, Any]
    found: int
    left: dict[str, int]
    inputs: Callable[[], torch.Tensor]
    kind: str = "batch_norm"


def pixels(size: int = 64) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(2, 3, size, size)


def values(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(*shape)


ZOO: dict[str, Entry] = {
    "resnet": Entry("ResNetModel", {**STAGES, "depths": [2, 2, 1, 1]}, 22, {}, pixels()),
    "resnet_basic": Entry(
        "ResNetModel", {**STAGES, "depths": [1, 1, 1, 1], "layer_type": "basic"}, 12, {}, pixels()
    ),
    "regnet": Entry("RegNetModel", {**STAGES, "depths": [1, 1, 2, 1], "groups_width": 8}, 20, {}, pixels()),
    "mobilenet_v1": Entry("MobileNetV1Model", {"depth_multiplier": 0.25}, 27, {}, pixels()),
    "mobilenet_v2": Entry("MobileNetV2Model", {"depth_multiplier": 0.25}, 52, {}, pixels()),
    "mobilevit": Entry(
        "MobileViTModel",
        {"hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
         "num_attention_heads": 2}, 32, {}, pixels(),
    ),
    "mobilevitv2": Entry("MobileViTV2Model", {"width_multiplier": 0.25}, 25, {}, pixels()),
    "efficientnet": Entry(
        "EfficientNetModel", {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}, 25, {},
        pixels(),
    ),
    "levit": Entry(
        "LevitModel",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2],
         "depths": [1, 1, 1], "key_dim": [8, 8, 8]}, 26, {}, pixels(),
    ),
    "swiftformer": Entry(
        "SwiftFormerModel", {"embed_dims": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}, 13, {}, pixels()
    ),
    "textnet": Entry(
        "TextNetModel",
        {"stem_num_channels": 3, "stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 16, 16]}, 51,
        {}, pixels(),
    ),
    "hgnet_v2": Entry(
        "HGNetV2Backbone",
        {"stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 16, 16], "embedding_size": 8,
         "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [16, 16, 16, 16],
         "stage_num_blocks": [1, 1, 1, 1], "hidden_sizes": [16, 16, 16, 16], "depths": [1, 1, 1, 1]}, 52, {},
        pixels(),
    ),
    "rt_detr_resnet": Entry("RTDetrResNetBackbone", {**STAGES, "depths": [1, 1, 1, 1]}, 18, {}, pixels()),
    "pp_lcnet": Entry("PPLCNetBackbone", {"scale": 0.25}, 27, {}, pixels()),
    "vitpose": Entry(
        "VitPoseForPoseEstimation", {"use_simple_decoder": False}, 2, {}, pixels(32),
    ),
    "segformer": Entry(
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16,
         "num_attention_heads": [1, 2, 2, 2]}, 1, {}, pixels(),
    ),
    "beit": Entry(
        "BeitForSemanticSegmentation",
        {**VIT, "image_size": 64, "patch_size": 16, "out_indices": [1, 2, 3, 4],
         "pool_scales": [1, 2]}, 11, {}, pixels(),
    ),
    "patchtst": Entry(
        "PatchTSTModel",
        {"num_input_channels": 3, "context_length": 32, "patch_length": 4, "d_model": 16,
         "num_attention_heads": 2, "num_hidden_layers": 2, "ffn_dim": 32}, 4, {}, values(2, 32, 3),
    ),
    "patchtsmixer": Entry(
        "PatchTSMixerModel",
        {"context_length": 32, "patch_length": 8, "num_input_channels": 3, "d_model": 16, "num_layers": 2,
         "norm_mlp": "BatchNorm"}, 4, {"raw_reader": 2}, values(2, 32, 3),
    ),
    "wav2vec2_conformer": Entry(
        "Wav2Vec2ConformerModel",
        {**VIT, "num_hidden_layers": 2, "conv_dim": [16, 16], "conv_kernel": [5, 3], "conv_stride": [3, 2],
         "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}, 2,
        {}, values(2, 800),
    ),
    "bit": Entry(
        "BitModel",
        {"embedding_size": 32, "hidden_sizes": [32, 32, 32, 32], "depths": [1, 1, 1, 1], "num_groups": 8}, 17,
        {}, pixels(), kind="weight_standardization",
    ),
}  # fmt: skip
#: Those that every run of the tests builds.
QUICK = ("resnet", "levit", "patchtsmixer")


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor]:
    """A model in evaluation mode with an example input; the same ones at every call."""
    import transformers

    entry = ZOO[name]
    torch.manual_seed(0)
    cls = getattr(transformers, entry.model)
    config = dict(entry.config)
    if name == "vitpose":
        config["backbone_config"] = transformers.VitPoseBackboneConfig(
            image_size=[32, 32], patch_size=[8, 8], out_features=["stage2"], **{**VIT, "num_hidden_layers": 2}
        )
    model = cls(cls.config_class(**config)).eval()
    randomise(model)
    return model.to(dtype), entry.inputs().to(dtype)


def calibrate(model: nn.Module, x: torch.Tensor) -> None:
    """Give the norms statistics near those of their inputs, as training leaves them."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(x)
        for norm in norms:
            norm.eval()
            norm.running_mean.mul_(1 + 0.1 * torch.randn_like(norm.running_mean))
            norm.running_var.mul_(0.9 + 0.2 * torch.rand_like(norm.running_var)).add_(1e-3)
