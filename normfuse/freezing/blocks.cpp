// Products of data with a constant weight that is stored in blocks of outputs; see blocks.py.

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
typedef uint32_t Words __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));
// The bits of a bfloat16, which are the upper half of those of a float.
struct Short { uint16_t bits; };

static inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }

// The weights of one input and a block of outputs; and where that of an output lies among them.
static inline void read(const float* from, Vector* weights) {
    weights[0] = load(from);
    weights[1] = load(from + kLanes);
}
static inline void read(const Short* from, Vector* weights) {
    const Words both = *reinterpret_cast<const Words*>(from);
    weights[0] = (Vector)(both << 16);
    weights[1] = (Vector)(both & 0xffff0000u);
}
static inline int64_t place(const float*, int64_t output) { return output; }
static inline int64_t place(const Short*, int64_t output) { return output % kLanes * 2 + output / kLanes; }

static inline float value(float from) { return from; }
static inline float value(Short from) {
    const uint32_t bits = static_cast<uint32_t>(from.bits) << 16;
    float made;
    std::memcpy(&made, &bits, sizeof(made));
    return made;
}

// The nearest one, the even one of two that are as near.
static inline void put(float* to, float from) { *to = from; }
static inline void put(Short* to, float from) {
    uint32_t bits;
    std::memcpy(&bits, &from, sizeof(bits));
    to->bits = from != from ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

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
template <typename Weight>
static void multiply_one(const float* row, const Weight* block, int64_t in, float* made) {
    Vector total[2] = {};
    for (int64_t k = 0; k < in;) {
        Vector sums[kInputs][2] = {}, weights[2];
        const int64_t end = std::min(in, k + kTermsOfOneRow);
        for (; k + kInputs <= end; k += kInputs)
            for (int i = 0; i < kInputs; i++) {
                read(block + (k + i) * kBlock, weights);
                for (int h = 0; h < 2; h++) sums[i][h] += row[k + i] * weights[h];
            }
        for (; k < end; k++) {
            read(block + k * kBlock, weights);
            for (int h = 0; h < 2; h++) sums[0][h] += row[k] * weights[h];
        }
        for (int half = kInputs / 2; half; half /= 2)
            for (int i = 0; i < half; i++)
                for (int h = 0; h < 2; h++) sums[i][h] += sums[i + half][h];
        for (int h = 0; h < 2; h++) total[h] += sums[0][h];
    }
    std::memcpy(made, total, sizeof(total));
}

template <typename Weight>
static void pack_into(const Tensor& weight, Weight* to) {
    const int64_t in = weight.size(0), out = weight.size(1);
    const int64_t by_in = weight.stride(0), by_out = weight.stride(1);
    const Weight* from = static_cast<const Weight*>(weight.data_ptr());
    for (int64_t first = 0; first < out; first += kBlock)
        for (int64_t k = 0; k < in; k++, to += kBlock)
            for (int64_t j = 0; j < kBlock; j++)
                to[place(to, j)] = first + j < out ? from[k * by_in + (first + j) * by_out] : Weight{};
}

static bool is_short(const Tensor& tensor) {
    return tensor.scalar_type() == torch::headeronly::ScalarType::BFloat16;
}

Tensor pack(Tensor weight) {
    const int64_t in = weight.size(0), blocks = (weight.size(1) + kBlock - 1) / kBlock;
    Tensor packed = torch::stable::new_empty(weight, {blocks * in * kBlock});
    if (is_short(weight)) pack_into(weight, static_cast<Short*>(packed.data_ptr()));
    else pack_into(weight, static_cast<float*>(packed.data_ptr()));
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
template <typename Weight>
struct Product {
    int64_t in, out, by_bias;
    const Weight* held;
    const Weight* bias;

    Product(int64_t in, int64_t out, const Tensor& packed, const std::optional<Tensor>& bias)
        : in(in), out(out), by_bias(bias ? bias->stride(0) : 0),
          held(static_cast<const Weight*>(packed.data_ptr())),
          bias(bias ? static_cast<const Weight*>(bias->data_ptr()) : nullptr) {}

    // Call multiply(block, sums) for each block, and write the sums of some rows, [rows, kBlock], with the bias.
    template <typename Multiply>
    void write(int64_t rows, Weight* made, const Multiply& multiply) const {
        const int64_t grain = std::max<int64_t>(1, 32768 / (kBlock * std::max<int64_t>(rows * in, 1)));
        torch::stable::parallel_for(0, (out + kBlock - 1) / kBlock, grain, [&](int64_t from, int64_t to) {
            std::vector<float> sums(rows * kBlock);
            for (int64_t block = from; block < to; block++) {
                const int64_t first = block * kBlock, count = std::min(kBlock, out - first);
                multiply(held + first * in, sums.data());
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t j = 0; j < count; j++)
                        put(made + r * out + first + j,
                            sums[r * kBlock + j] + (bias ? value(bias[(first + j) * by_bias]) : 0.0f));
            }
        });
    }

    // Each of some rows, [rows, in], by itself.
    void write_each(const float* data, int64_t rows, Weight* made) const {
        write(rows, made, [&](const Weight* block, float* sums) {
            for (int64_t r = 0; r < rows; r++) multiply_one(data + r * in, block, in, sums + r * kBlock);
        });
    }
};

static void multiply_rows(const Product<float>& product, const Tensor& data, float* made) {
    const int64_t rows = data.size(0), in = product.in, most = std::min(rows, kMost);
    if (rows == 1 && data.stride(1) == 1) {
        product.write_each(static_cast<const float*>(data.data_ptr()), 1, made);
        return;
    }
    Tensor copy = torch::stable::new_empty(data, {(in + kTerms - 1) / kTerms * most * kStep});
    float* laid = static_cast<float*>(copy.data_ptr());
    for (int64_t top = 0; top < rows; top += most) {
        const int64_t here = std::min(most, rows - top);
        lay_out(data, top, here, laid);
        product.write(here, made + top * product.out, [&](const float* block, float* sums) {
            multiply_all(laid, here, in, block, sums);
        });
    }
}

static void multiply_rows(const Product<Short>& product, const Tensor& data, Short* made) {
    const int64_t rows = data.size(0), by_row = data.stride(0), by_in = data.stride(1);
    const Short* from = static_cast<const Short*>(data.data_ptr());
    std::vector<float> whole(rows * product.in);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < product.in; k++)
            whole[r * product.in + k] = value(from[r * by_row + k * by_in]);
    product.write_each(whole.data(), rows, made);
}

Tensor product(Tensor data, Tensor packed, std::optional<Tensor> bias, int64_t out) {
    Tensor result = torch::stable::new_empty(data, {data.size(0), out});
    const int64_t in = data.size(1);
    if (is_short(data))
        multiply_rows(Product<Short>(in, out, packed, bias), data, static_cast<Short*>(result.data_ptr()));
    else
        multiply_rows(Product<float>(in, out, packed, bias), data, static_cast<float*>(result.data_ptr()));
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
