// The interface of the kernels: the arguments of each operation, as Python fills them in, and the
// table of functions that every variant (AVX2, NEON, ...) provides.
//
// All arrays are row-major and contiguous. Nothing here allocates: buffers belong to the caller,
// workspaces to the pool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "pool.h"

// Of a function that has to be part of its caller: its vectors stay in registers.
#define GPTOSS_INLINE static inline __attribute__((always_inline))
#define GPTOSS_INLINED inline __attribute__((always_inline))
// Of a function that has the registers to itself.
#define GPTOSS_APART __attribute__((noinline))

// Before a loop of a known length, at most 16, whose arrays of vectors stay in registers only if it
// becomes straight code.
#if defined(__clang__)
#define GPTOSS_UNROLL _Pragma("unroll")
#else
#define GPTOSS_UNROLL _Pragma("GCC unroll 16")
#endif

// Compilers that know AMX, on the system that lends it to processes.
#if defined(__x86_64__) && defined(__linux__)
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define GPTOSS_AMX
#endif
#endif

namespace gptoss {

// The first N bytes, 2 to 7, as a number. A copy of so many would be loaded before its parts are
// stored, and wait for them.
template <int N>
GPTOSS_INLINE uint64_t load_bytes(const uint8_t* p) {
    uint64_t number = 0;
    int at = 0;
    if (N >= 4) {
        uint32_t four;
        std::memcpy(&four, p, 4);
        number = four;
        at = 4;
    }
    if (N % 4 >= 2) {
        uint16_t two;
        std::memcpy(&two, p + at, 2);
        number |= uint64_t(two) << 8 * at;
        at += 2;
    }
    if (N % 2) number |= uint64_t(p[at]) << 8 * at;
    return number;
}

// Digits in base 256 of an activation that bytes are multiplied by (planes.h).
constexpr int DIGITS = 3;

enum Format : int32_t { F32, BF16, MXFP4, AFFINE };

// W [outputs, inputs]. AFFINE: codes of `bits` bits, the lowest first, each times its group's scale
// plus its group's bias; scales and biases [outputs, inputs / group] are bfloat16, or float32 if
// `wide`. MXFP4: groups of 32, a scale is the exponent of a power of two.
struct Matrix {
    int32_t format, bits, group, wide;
    int64_t outputs, inputs;
    const uint8_t *weight, *scales, *biases;
};

// y [rows, outputs of all parts] = norm(x) W^T + bias + residual.
//
// norm [inputs] is RMSNorm's weight. norm, a part's bias and the residual may be null.
struct LinearPart {
    Matrix matrix;
    const float* bias;
};

struct Linear {
    const LinearPart* parts;
    int64_t count;
    const float* norm;
    float eps;
};

struct LinearCall {
    const Linear* linear;
    int64_t rows;
    const float *x, *residual;
    float* y;
};

// Rows of a matrix as float32: out [rows, inputs]. With an embedding table, ids are tokens.
struct RowsCall {
    Matrix matrix;
    int64_t rows;
    const int64_t* ids;
    float* out;
};

// Keys and values of one sequence in one layer lie in pages of `places` tokens each, in `type`:
//   keys [kv_heads, head_dim, places], values [kv_heads, places, head_dim];
// as U8 each head's key or value is codes * scale + bias, and behind the values lie float32
//   key scales, key biases, value scales, value biases [kv_heads, places] each.
enum KeyType : int32_t { K_F32, K_BF16, K_U8 };

struct Shape {
    int32_t heads, kv_heads, head_dim, type;
    int64_t places;
};

// Queries of consecutive tokens of one sequence. Query i attends to the places from
// max(0, seen + i + 1 - window) to seen + i; in a full layer, `window` is larger than any context.
struct Span {
    int64_t tokens, seen, window;
    void* const* pages;
};

// qkv [tokens of all spans, (heads + 2 * kv_heads) * head_dim] float32 -> the queries are rotated
// in place; the keys, rotated, and the values are written into the pages, span s's token i at place
// writes[s] + i. cosines and sines [tokens, head_dim / 2].
struct StoreCall {
    Shape shape;
    int64_t spans;
    const Span* span;
    const int64_t* writes;
    float* qkv;
    const float *cosines, *sines;
};

// y [tokens of all spans, heads * head_dim]: attention with one learned sink logit a head, which
// takes its share of the softmax and adds nothing. scale: of the scores. partials: room for the
// parts that long spans are split into, see attention.h.
struct AttentionCall {
    Shape shape;
    int64_t spans;
    const Span* span;
    const float *qkv, *sinks;
    float scale;
    float *partials, *y;
};

// logits [rows, experts] -> the k largest of each row, the largest first and of equal ones the
// first, and the softmax over just those.
struct RouterCall {
    int64_t rows, experts, k;
    const float* logits;
    int32_t* ids;
    float* weights;
};

// The experts of one layer. gate_up and down: the matrix of slot 0, the others follow; biases
// [experts, outputs]. Outputs of gate_up alternate: gate, up, gate, up, ...
struct Bank {
    Matrix gate_up, down;
    const float *gate_up_bias, *down_bias, *norm;
    float eps, limit;
};

// Pairs of a token and an expert that it visits. row: of x. slot: where the expert lies; expert:
// its number, by which its biases lie. place: the pair's row in h and in out. moe_gate_up writes h,
// whose rows are `down.inputs` long, padded to a multiple of 128; moe_down reads and destroys it, and writes out.
struct VisitsCall {
    const Bank* bank;
    int64_t rows, pairs, slots;
    const int32_t *row, *slot, *expert, *place;
    const float* weight;
    const float* x;
    float *h, *out;
};

// y [rows, width] = residual + the k rows of x [rows, k, width] of each, in order.
struct SumCall {
    int64_t rows, k, width;
    const float *x, *residual;
    float* y;
};

// The values of sixteen codes, which bfloat16 has exactly: the upper and the lower byte of each.
struct Bytes {
    alignas(16) uint8_t high[16], low[16];
};

struct Kernels {
    const char* name;
    bool (*supported)();
    void (*rows)(const RowsCall&, Worker&);
    void (*linear)(const LinearCall&, Worker&);
    void (*store)(const StoreCall&, Worker&);
    void (*attention)(const AttentionCall&, Worker&);
    void (*router_topk)(const RouterCall&, Worker&);
    void (*moe_gate_up)(const VisitsCall&, Worker&);
    void (*moe_down)(const VisitsCall&, Worker&);
    void (*sum)(const SumCall&, Worker&);
};

}  // namespace gptoss
