"""The models of the suite: real shapes, random weights. Each factory returns a model and its inputs.

normfuse bench bench.subjects:vit_base --batch 1 --batch 8
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.llama_step import LLAMA, LlamaStep
from normfuse.cli.decoder import GPT2_SMALL, DecoderStep, decode_inputs

__all__ = ["SUBJECTS", "randomized"]

Subject = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

#: Factories by name, and the batch sizes of a full run.
SUBJECTS: dict[str, tuple[int, ...]] = {
    "gpt2_prefill": (1,),
    "gpt2_decode": (1,),
    "llama_prefill": (1,),
    "llama_decode": (1,),
    "bert": (1,),
    "vit_tiny": (1, 8),
    "vit_small": (1, 4),
    "vit_base": (1,),
    "swin": (1,),
    "convnext": (1,),
    "resnet18": (1, 8),
    "resnet50": (1, 4),
}


def gpt2_prefill(batch_size: int | None = None) -> Subject:
    """GPT-2 small on 128 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return _text(GPT2LMHeadModel(GPT2Config()), batch_size, {"use_cache": False})


def gpt2_decode(batch_size: int | None = None) -> Subject:
    """One token of GPT-2 small with 96 cached ones; one sequence."""
    torch.manual_seed(0)
    return DecoderStep(GPT2_SMALL).eval(), decode_inputs(GPT2_SMALL), {}


def llama_prefill(batch_size: int | None = None) -> Subject:
    """A Llama of 8 layers of width 768 on 128 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12, vocab_size=32000
    )
    return _text(LlamaForCausalLM(config), batch_size, {"use_cache": False})


def llama_decode(batch_size: int | None = None) -> Subject:
    """One token of a Llama of 8 layers of width 768 with 96 cached ones; one sequence."""
    torch.manual_seed(0)
    return randomized(LlamaStep(LLAMA)), decode_inputs(LLAMA), {}


def bert(batch_size: int | None = None) -> Subject:
    """BERT base on 128 tokens: a post-norm model, of which nothing can be converted."""
    from transformers import BertConfig, BertModel

    return _text(BertModel(BertConfig()), batch_size, {})


def vit_tiny(batch_size: int | None = None) -> Subject:
    return _vit(192, 3, batch_size)


def vit_small(batch_size: int | None = None) -> Subject:
    return _vit(384, 6, batch_size)


def vit_base(batch_size: int | None = None) -> Subject:
    return _vit(768, 12, batch_size)


def swin(batch_size: int | None = None) -> Subject:
    """Swin-T at 224 x 224."""
    from transformers import SwinConfig, SwinForImageClassification

    return _image(SwinForImageClassification(SwinConfig(num_labels=1000)), batch_size)


def convnext(batch_size: int | None = None) -> Subject:
    """ConvNeXt-T at 224 x 224."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return _image(ConvNextForImageClassification(ConvNextConfig(num_labels=1000)), batch_size)


def resnet18(batch_size: int | None = None) -> Subject:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", num_labels=1000
    )
    return _image(ResNetForImageClassification(config), batch_size)


def resnet50(batch_size: int | None = None) -> Subject:
    from transformers import ResNetConfig, ResNetForImageClassification

    return _image(ResNetForImageClassification(ResNetConfig(num_labels=1000)), batch_size)


def _vit(width: int, heads: int, batch_size: int | None) -> Subject:
    """ViT with 12 layers and patches of 16 at 224 x 224."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, num_labels=1000
    )
    return _image(ViTForImageClassification(config), batch_size)


def _image(model: nn.Module, batch_size: int | None) -> Subject:
    return randomized(model), (torch.randn(batch_size or 1, 3, 224, 224),), {}


def _text(model: nn.Module, batch_size: int | None, kwargs: dict[str, Any]) -> Subject:
    tokens: Tensor = torch.randint(1000, (batch_size or 1, 128))
    return randomized(model), (tokens,), kwargs


def randomized(model: nn.Module) -> nn.Module:
    """Norms whose scale and shift are not the identity, as after training."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
