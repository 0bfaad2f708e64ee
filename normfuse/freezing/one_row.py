"""A product of one row with a weight, as it lies: what a step that decodes one token does.

Such a product is bound by memory: each weight is read once. Where the libraries' general product does not
reach the memory's speed, this one does, and needs no copy of the weight in another order. Several sums run at
once, which hides the time that an addition takes, and makes the result more exact than one long sum.
"""

from __future__ import annotations

import logging
from functools import cache

import torch

from normfuse.errors import cause
from normfuse.inductor_compat import compiled_library

__all__ = ["product_of_one_row"]

log = logging.getLogger("normfuse")

_SOURCE = r"""
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

using torch::stable::Tensor;

#ifdef __AVX512F__
constexpr int kBytes = 64, kTogether = 8;
#else
constexpr int kBytes = 32, kTogether = 4;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int64_t kLanes = kBytes / sizeof(float);

static inline Vector load(const float* from) {
    Vector vector;
    std::memcpy(&vector, from, kBytes);
    return vector;
}

// Dot products of x with `Together` outputs' weights, which lie one after the other.
template <int Together>
static void dot(const float* x, const float* weight, int64_t in, float* made) {
    Vector sums[Together][2] = {};
    int64_t i = 0;
    for (; i + 2 * kLanes <= in; i += 2 * kLanes) {
        Vector first = load(x + i), second = load(x + i + kLanes);
        for (int r = 0; r < Together; r++) {
            sums[r][0] += first * load(weight + r * in + i);
            sums[r][1] += second * load(weight + r * in + i + kLanes);
        }
    }
    for (int r = 0; r < Together; r++) {
        float lanes[kLanes];
        Vector both = sums[r][0] + sums[r][1];
        std::memcpy(lanes, &both, kBytes);
        for (int64_t half = kLanes / 2; half; half /= 2)
            for (int64_t j = 0; j < half; j++) lanes[j] += lanes[j + half];
        float rest = 0;
        for (int64_t j = i; j < in; j++) rest += x[j] * weight[r * in + j];
        made[r] = lanes[0] + rest;
    }
}

static void by_output(
    const float* x, const float* weight, int64_t in, float* made, int64_t from, int64_t to) {
    int64_t n = from;
    for (; n + kTogether <= to; n += kTogether) dot<kTogether>(x, weight + n * in, in, made + n);
    for (; n < to; n++) dot<1>(x, weight + n * in, in, made + n);
}

// Adds `Together` inputs' weights, each times its x, to the outputs from `from` to `to`.
template <int Together>
static void add(const float* x, const float* weight, int64_t out, float* made, int64_t from, int64_t to) {
    int64_t n = from;
    for (; n + kLanes <= to; n += kLanes) {
        Vector terms[Together];
        for (int r = 0; r < Together; r++) terms[r] = x[r] * load(weight + r * out + n);
        for (int half = Together / 2; half; half /= 2)
            for (int r = 0; r < half; r++) terms[r] += terms[r + half];
        Vector sum = load(made + n) + terms[0];
        std::memcpy(made + n, &sum, kBytes);
    }
    for (; n < to; n++) {
        float sum = 0;
        for (int r = 0; r < Together; r++) sum += x[r] * weight[r * out + n];
        made[n] += sum;
    }
}

static void by_input(
    const float* x, const float* weight, int64_t in, int64_t out, float* made, int64_t from, int64_t to) {
    std::fill(made + from, made + to, 0.0f);
    int64_t k = 0;
    for (; k + 8 <= in; k += 8) add<8>(x + k, weight + k * out, out, made, from, to);
    for (; k < in; k++) add<1>(x + k, weight + k * out, out, made, from, to);
}

Tensor one_row(Tensor data, Tensor weight, std::optional<Tensor> bias) {
    const int64_t in = weight.size(0), out = weight.size(1), step = data.stride(1);
    Tensor result = torch::stable::new_empty(data, {1, out});
    const float* given = static_cast<const float*>(data.data_ptr());
    std::vector<float> row;
    if (step != 1) {
        row.resize(in);
        for (int64_t k = 0; k < in; k++) row[k] = given[k * step];
        given = row.data();
    }
    const float* held = static_cast<const float*>(weight.data_ptr());
    const float* shift = bias ? static_cast<const float*>(bias->data_ptr()) : nullptr;
    float* made = static_cast<float*>(result.data_ptr());
    const bool outputs_lie_together = weight.stride(0) == 1;
    torch::stable::parallel_for(0, out, std::max<int64_t>(1, 65536 / std::max<int64_t>(in, 1)),
        [&](int64_t from, int64_t to) {
            if (outputs_lie_together) by_output(given, held, in, made, from, to);
            else by_input(given, held, in, out, made, from, to);
            if (shift) for (int64_t n = from; n < to; n++) made[n] += shift[n];
        });
    return result;
}

STABLE_TORCH_LIBRARY_FRAGMENT(normfuse, library) {
    library.def("one_row(Tensor data, Tensor weight, Tensor? bias) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(normfuse, CPU, library) { library.impl("one_row", TORCH_BOX(&one_row)); }
"""


def product_of_one_row(weight: torch.Tensor) -> torch._ops.OpOverload | None:
    """The operator ``(data [1, in], weight [in, out], bias [out] or None) -> [1, out]``, all in float32.

    The weight's entries lie without gaps, in either order. None where the weight's do not, or nothing can be
    compiled.
    """
    inputs, outputs = weight.shape
    if weight.dtype != torch.float32 or weight.stride() not in ((1, inputs), (outputs, 1)):
        return None
    return _operator() if min(weight.shape) > 1 else None


@cache
def _operator() -> torch._ops.OpOverload | None:
    try:
        compiled_library(_SOURCE)
    except Exception as error:
        log.info("products of one row are left to the libraries: %s", cause(error))
        return None
    torch.library.register_fake("normfuse::one_row", _made)
    operator: torch._ops.OpOverload = torch.ops.normfuse.one_row.default
    return operator


def _made(data: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return data.new_empty((1, weight.shape[1]))
