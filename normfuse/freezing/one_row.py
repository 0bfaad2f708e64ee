"""A product of one row with a constant weight: what a step that decodes one token does.

Such a product is bound by memory, since each weight is read once. The weight is stored in blocks of outputs,
so that it is read from its first byte to its last, and in large pages where the system has them. Several
short sums run at once: the result is more exact than that of one long sum, and no addition is waited for.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import NamedTuple

import torch

from normfuse.errors import cause
from normfuse.inductor_compat import compiled_library

__all__ = ["OneRow", "one_row"]

log = logging.getLogger("normfuse")

#: So many outputs' weights lie side by side.
_BLOCK = 32

_SOURCE = r"""
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#endif

using torch::stable::Tensor;

// What a register file holds: sums of a block side by side, for so many inputs at once.
#ifdef __AVX512F__
constexpr int kInputs = 4;
#else
constexpr int kInputs = 2;
#endif
constexpr int64_t kLanes = 16, kBlock = 2 * kLanes, kTerms = 64, kPage = 1 << 21;
typedef float Vector __attribute__((vector_size(4 * kLanes)));

static inline Vector load(const float* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof(Vector));
    return vector;
}

// The product of x with a block, [in, kBlock]: sums of at most kTerms / kInputs terms, and the sum of these.
static void multiply(const float* x, const float* block, int64_t in, float* made) {
    Vector total[2] = {};
    for (int64_t k = 0; k < in;) {
        Vector sums[kInputs][2] = {};
        const int64_t end = std::min(in, k + kTerms);
        for (; k + kInputs <= end; k += kInputs)
            for (int r = 0; r < kInputs; r++)
                for (int h = 0; h < 2; h++)
                    sums[r][h] += x[k + r] * load(block + (k + r) * kBlock + h * kLanes);
        for (; k < end; k++)
            for (int h = 0; h < 2; h++) sums[0][h] += x[k] * load(block + k * kBlock + h * kLanes);
        for (int half = kInputs / 2; half; half /= 2)
            for (int r = 0; r < half; r++)
                for (int h = 0; h < 2; h++) sums[r][h] += sums[r + half][h];
        for (int h = 0; h < 2; h++) total[h] += sums[0][h];
    }
    std::memcpy(made, total, sizeof(total));
}

// Memory for so many numbers, in large pages where it is worth it and the system has them.
static Tensor room(const Tensor& like, int64_t count) {
    if (count * 4 < kPage) return torch::stable::new_empty(like, {count});
    Tensor whole = torch::stable::new_empty(like, {count + kPage / 4});
    const int64_t before = -reinterpret_cast<intptr_t>(whole.data_ptr()) & (kPage - 1);
    Tensor part = torch::stable::narrow(whole, 0, before / 4, count);
#ifdef MADV_HUGEPAGE
    madvise(part.data_ptr(), count * 4, MADV_HUGEPAGE);
#endif
    return part;
}

Tensor pack(Tensor weight) {
    const int64_t in = weight.size(0), out = weight.size(1);
    const int64_t by_in = weight.stride(0), by_out = weight.stride(1);
    const int64_t blocks = (out + kBlock - 1) / kBlock;
    Tensor packed = room(weight, blocks * in * kBlock);
    const float* from = static_cast<const float*>(weight.data_ptr());
    float* to = static_cast<float*>(packed.data_ptr());
    for (int64_t first = 0; first < out; first += kBlock)
        for (int64_t k = 0; k < in; k++, to += kBlock)
            for (int64_t j = 0; j < kBlock; j++)
                to[j] = first + j < out ? from[k * by_in + (first + j) * by_out] : 0.0f;
    return packed;
}

Tensor product(Tensor data, Tensor packed, std::optional<Tensor> bias, int64_t out) {
    const int64_t in = data.size(1), step = data.stride(1);
    Tensor result = torch::stable::new_empty(data, {1, out});
    const float* x = static_cast<const float*>(data.data_ptr());
    std::vector<float> row;
    if (step != 1) {
        row.resize(in);
        for (int64_t k = 0; k < in; k++) row[k] = x[k * step];
        x = row.data();
    }
    const float* held = static_cast<const float*>(packed.data_ptr());
    const float* shift = bias ? static_cast<const float*>(bias->data_ptr()) : nullptr;
    float* made = static_cast<float*>(result.data_ptr());
    const int64_t grain = std::max<int64_t>(1, 32768 / (kBlock * std::max<int64_t>(in, 1)));
    torch::stable::parallel_for(0, (out + kBlock - 1) / kBlock, grain, [&](int64_t from, int64_t to) {
        for (int64_t block = from; block < to; block++) {
            const int64_t first = block * kBlock, count = std::min(kBlock, out - first);
            float sums[kBlock];
            multiply(x, held + first * in, in, sums);
            for (int64_t j = 0; j < count; j++) made[first + j] = sums[j] + (shift ? shift[first + j] : 0.0f);
        }
    });
    return result;
}

STABLE_TORCH_LIBRARY_FRAGMENT(normfuse, library) {
    library.def("pack_for_one_row(Tensor weight) -> Tensor");
    library.def("one_row(Tensor data, Tensor packed, Tensor? bias, int outputs) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(normfuse, CPU, library) {
    library.impl("pack_for_one_row", TORCH_BOX(&pack));
    library.impl("one_row", TORCH_BOX(&product));
}
"""


class OneRow(NamedTuple):
    """The operators of a product of one row; all tensors are in float32.

    ``pack`` stores a weight ``[in, out]`` in blocks. ``multiply`` takes data ``[1, in]``, what was packed, a
    bias ``[out]`` or None, and the number ``out``, and makes ``[1, out]``.
    """

    pack: torch._ops.OpOverload
    multiply: torch._ops.OpOverload


@cache
def one_row() -> OneRow | None:
    """The two operators; None where they cannot be compiled."""
    try:
        compiled_library(_SOURCE)
    except Exception as error:
        log.info("products of one row are left to the libraries: %s", cause(error))
        return None
    torch.library.register_fake("normfuse::pack_for_one_row", _packed)
    torch.library.register_fake("normfuse::one_row", _made)
    return OneRow(torch.ops.normfuse.pack_for_one_row.default, torch.ops.normfuse.one_row.default)


def _packed(weight: torch.Tensor) -> torch.Tensor:
    inputs, outputs = weight.shape
    return weight.new_empty((outputs + _BLOCK - 1) // _BLOCK * _BLOCK * inputs)


def _made(data: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, outputs: int) -> torch.Tensor:
    return data.new_empty((1, outputs))
