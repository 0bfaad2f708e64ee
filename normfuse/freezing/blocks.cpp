// Products of float32 data with a constant weight that is stored in blocks of outputs; see blocks.py.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

// A product and its addition are one instruction, which rounds once; Inductor's options forbid that.
#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

using torch::stable::Tensor;

// What a register file holds: a tile of kRows rows and kParts times kLanes outputs, or for one row the sums
// of a block side by side, for kInputs inputs at once.
#ifdef __AVX512F__
constexpr int kRows = 14, kParts = 2, kInputs = 4;
#else
constexpr int kRows = 6, kParts = 1, kInputs = 2;
#endif
constexpr int64_t kLanes = 16, kBlock = 2 * kLanes;
// Sums of at most so many terms in a tile, which lie kStep apart in what is read; and so many for one row.
constexpr int64_t kTerms = 192, kStep = kTerms + 16, kTermsOfOneRow = 64;
// So many rows are multiplied with a block before the next one is read.
constexpr int64_t kMost = 20 * kRows;
typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

static inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }

static inline void add(float* to, const Vector& sum) {
    *reinterpret_cast<Unaligned*>(to) = load(to) + sum;
}

// Add the product of R rows, kStep apart, with some inputs of a block to sums, [R, kBlock].
template <int R>
static void multiply(const float* rows, const float* block, int64_t terms, float* made) {
    for (int part = 0; part < kBlock / kLanes; part += kParts) {
        Vector sums[R][kParts] = {};
        for (int64_t k = 0; k < terms; k++) {
            Vector weight[kParts];
            for (int h = 0; h < kParts; h++) weight[h] = load(block + k * kBlock + (part + h) * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++)
#pragma GCC unroll 2
                for (int h = 0; h < kParts; h++) sums[r][h] += rows[r * kStep + k] * weight[h];
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int h = 0; h < kParts; h++) add(made + r * kBlock + (part + h) * kLanes, sums[r][h]);
    }
}

typedef void (*Multiply)(const float*, const float*, int64_t, float*);

template <int... R>
static Multiply of_height(int64_t height, std::integer_sequence<int, R...>) {
    static constexpr Multiply all[] = {multiply<R + 1>...};
    return all[height - 1];
}

// The product of one row with a block, [in, kBlock]: short sums, and the sum of these.
static void multiply_one(const float* row, const float* block, int64_t in, float* made) {
    Vector total[2] = {};
    for (int64_t k = 0; k < in;) {
        Vector sums[kInputs][2] = {};
        const int64_t end = std::min(in, k + kTermsOfOneRow);
        for (; k + kInputs <= end; k += kInputs)
            for (int i = 0; i < kInputs; i++)
                for (int h = 0; h < 2; h++)
                    sums[i][h] += row[k + i] * load(block + (k + i) * kBlock + h * kLanes);
        for (; k < end; k++)
            for (int h = 0; h < 2; h++) sums[0][h] += row[k] * load(block + k * kBlock + h * kLanes);
        for (int half = kInputs / 2; half; half /= 2)
            for (int i = 0; i < half; i++)
                for (int h = 0; h < 2; h++) sums[i][h] += sums[i + half][h];
        for (int h = 0; h < 2; h++) total[h] += sums[0][h];
    }
    std::memcpy(made, total, sizeof(total));
}

Tensor pack(Tensor weight) {
    const int64_t in = weight.size(0), out = weight.size(1);
    const int64_t by_in = weight.stride(0), by_out = weight.stride(1);
    const int64_t blocks = (out + kBlock - 1) / kBlock;
    Tensor packed = torch::stable::new_empty(weight, {blocks * in * kBlock});
    const float* from = static_cast<const float*>(weight.data_ptr());
    float* to = static_cast<float*>(packed.data_ptr());
    for (int64_t first = 0; first < out; first += kBlock)
        for (int64_t k = 0; k < in; k++, to += kBlock)
            for (int64_t j = 0; j < kBlock; j++)
                to[j] = first + j < out ? from[k * by_in + (first + j) * by_out] : 0.0f;
    return packed;
}

// Some rows of data in the order in which tiles read them: [in / kTerms, rows, kStep].
static void lay_out(const Tensor& data, int64_t top, int64_t rows, float* to) {
    const int64_t in = data.size(1), by_row = data.stride(0), by_in = data.stride(1);
    const float* from = static_cast<const float*>(data.data_ptr()) + top * by_row;
    torch::stable::parallel_for(0, rows, 1 + 32768 / std::max<int64_t>(in, 1), [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++)
            for (int64_t k = 0; k < in; k += kTerms) {
                const float* row = from + r * by_row + k * by_in;
                float* held = to + (k / kTerms * rows + r) * kStep;
                const int64_t terms = std::min(kTerms, in - k);
                if (by_in == 1) std::memcpy(held, row, 4 * terms);
                else for (int64_t i = 0; i < terms; i++) held[i] = row[i * by_in];
            }
    });
}

// The product of rows that are laid out with a block, in sums, [rows, kBlock]; the tiles are about equally high.
static void multiply_all(const float* laid, int64_t rows, int64_t in, const float* block, float* sums) {
    const int64_t tiles = (rows + kRows - 1) / kRows;
    std::fill(sums, sums + rows * kBlock, 0.0f);
    for (int64_t k = 0; k < in; k += kTerms, laid += rows * kStep)
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t r = rows * tile / tiles, height = rows * (tile + 1) / tiles - r;
            const Multiply multiply = of_height(height, std::make_integer_sequence<int, kRows>());
            multiply(laid + r * kStep, block + k * kBlock, std::min(kTerms, in - k), sums + r * kBlock);
        }
}

// What a product reads beside the data, and where it writes.
struct Product {
    int64_t in, out, by_bias;
    const float* held;
    const float* bias;

    // Call multiply(block, sums) for each block, and write the sums of some rows, [rows, kBlock], with the bias.
    template <typename Multiply>
    void write(int64_t rows, float* made, const Multiply& multiply) const {
        const int64_t grain = std::max<int64_t>(1, 32768 / (kBlock * std::max<int64_t>(rows * in, 1)));
        torch::stable::parallel_for(0, (out + kBlock - 1) / kBlock, grain, [&](int64_t from, int64_t to) {
            std::vector<float> sums(rows * kBlock);
            for (int64_t block = from; block < to; block++) {
                const int64_t first = block * kBlock, count = std::min(kBlock, out - first);
                multiply(held + first * in, sums.data());
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t j = 0; j < count; j++)
                        made[r * out + first + j] =
                            sums[r * kBlock + j] + (bias ? bias[(first + j) * by_bias] : 0.0f);
            }
        });
    }
};

Tensor product(Tensor data, Tensor packed, std::optional<Tensor> bias, int64_t out) {
    const int64_t rows = data.size(0), in = data.size(1), most = std::min(rows, kMost);
    Tensor result = torch::stable::new_empty(data, {rows, out});
    float* made = static_cast<float*>(result.data_ptr());
    const Product product{
        in, out, bias ? bias->stride(0) : 0, static_cast<const float*>(packed.data_ptr()),
        bias ? static_cast<const float*>(bias->data_ptr()) : nullptr};
    if (rows == 1 && data.stride(1) == 1) {
        const float* row = static_cast<const float*>(data.data_ptr());
        product.write(1, made, [&](const float* block, float* sums) { multiply_one(row, block, in, sums); });
        return result;
    }
    Tensor copy = torch::stable::new_empty(data, {(in + kTerms - 1) / kTerms * most * kStep});
    float* laid = static_cast<float*>(copy.data_ptr());
    for (int64_t top = 0; top < rows; top += most) {
        const int64_t here = std::min(most, rows - top);
        lay_out(data, top, here, laid);
        product.write(here, made + top * out, [&](const float* block, float* sums) {
            multiply_all(laid, here, in, block, sums);
        });
    }
    return result;
}

STABLE_TORCH_LIBRARY_FRAGMENT(normfuse, library) {
    library.def("pack_in_blocks(Tensor weight) -> Tensor");
    library.def("multiply_blocks(Tensor data, Tensor packed, Tensor? bias, int outputs) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(normfuse, CPU, library) {
    library.impl("pack_in_blocks", TORCH_BOX(&pack));
    library.impl("multiply_blocks", TORCH_BOX(&product));
}
