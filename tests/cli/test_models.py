"""The demo's models: shapes, the cache, the data and the training loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normfuse.cli.decoder import DecoderSize, DecoderStep, decode_inputs
from normfuse.cli.digits import DigitTransformer, accuracy, load_digits, train

SIZE = DecoderSize(layers=2, width=16, heads=2, vocabulary=20, positions=8, cached=5)


def test_decode_steps_from_an_empty_cache_equal_attention_over_the_whole_text():
    torch.manual_seed(0)
    model = DecoderStep(SIZE).double().eval()
    tokens = torch.randint(SIZE.vocabulary, (1, 6))
    empty = torch.zeros(SIZE.layers, 1, SIZE.heads, 0, SIZE.width // SIZE.heads, dtype=torch.float64)
    keys, values = empty, empty
    with torch.no_grad():
        for i in range(6):
            logits, k, v = model(tokens[:, i : i + 1], torch.tensor([[i]]), keys, values)
            keys, values = torch.cat((keys, k), 3), torch.cat((values, v), 3)
        expected = _causal(model, tokens)
    torch.testing.assert_close(logits[0, 0], expected, rtol=1e-12, atol=1e-12)


def _causal(model, tokens):
    """Logits of the last position, written without a cache."""
    x = model.tokens(tokens) + model.positions(torch.arange(tokens.shape[1]))
    for block in model.blocks:
        q, k, v = block.attention.project_in(block.norm_1(x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (SIZE.heads, -1)).transpose(1, 2) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + block.attention.project_out(attended)
        x = x + block.mlp(block.norm_2(x))
    return model.head(model.norm(x))[0, -1]


def test_decode_inputs_fit_and_the_head_is_the_embedding():
    model = DecoderStep(SIZE)
    logits, keys, values = model(*decode_inputs(SIZE))
    assert logits.shape == (1, 1, 20)
    assert keys.shape == values.shape == (2, 1, 2, 1, 8)
    assert model.head.weight is model.tokens.weight


def test_patches_are_2x2_squares_in_reading_order():
    model = DigitTransformer(layers=1, width=8, heads=1)
    seen = []
    model.embed.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    images = torch.arange(128.0).reshape(2, 8, 8)
    assert model(images).shape == (2, 10)
    expected = F.unfold(images[:, None], kernel_size=2, stride=2).transpose(1, 2)
    assert torch.equal(seen[0], expected)


def test_training_teaches_and_stops_with_the_clock():
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    data = load_digits()
    assert (len(data.train_images), len(data.test_images)) == (1437, 360)
    model = DigitTransformer(layers=2, width=64, heads=2)
    before = accuracy(_answers(model, data.test_images), data.test_labels)
    ticks = iter(range(1000))
    assert train(model, data, 150.0, clock=lambda: next(ticks)) == 149
    assert not model.training
    assert accuracy(_answers(model, data.test_images), data.test_labels) > before + 0.5


def _answers(model: nn.Module, images):
    with torch.no_grad():
        return model(images).argmax(-1)


def test_the_split_is_the_same_every_time():
    pytest.importorskip("sklearn")
    first, second = load_digits(), load_digits()
    assert torch.equal(first.test_images, second.test_images)
    assert torch.equal(first.train_labels, second.train_labels)
