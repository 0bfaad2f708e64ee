"""Compile a GPT-2 and let it ``generate``: prefill and decode steps are graphs of one model, with one set of
folded weights.

    python examples/compile_language_model.py
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import normfuse


def main(**options: Any) -> bool:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=96, n_head=3, vocab_size=500, bos_token_id=0, eos_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    prompt = torch.randint(1, 500, (2, 12))
    generation = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, **generation)

    # a graph for every length would be compiled otherwise
    model.forward = torch.compile(model.forward, backend="normfuse", dynamic=True, options=options or None)
    found = model.generate(prompt, **generation)

    print(normfuse.last_report())
    print(f"tokens: {found[0, 12:].tolist()}")
    same = torch.equal(found, expected)
    print("the same tokens as the model without a compiler" if same else "OTHER tokens")
    return same


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
