// AVX-512 and AMX: matrices of bfloat16 in tiles of 16 rows of 64 bytes, which tiles.h multiplies.
#pragma once

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GPTOSS_VARIANT amx
#define GPTOSS_TILES
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,amx-tile," \
                          "amx-bf16,avx2,fma"))), apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,amx-tile,amx-bf16,avx2,fma")
#endif

#include "avx512.h"

namespace gptoss {
namespace amx {

// Linux lets a process use tiles once it has asked for them.
static bool tiles_permitted() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static bool supported() {
    constexpr unsigned VBMI = 1u << 1, AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24, BF16 = 1u << 5;
    unsigned a, b, c, d;
    if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(c & VBMI) || !(d & AMX_BF16) || !(d & AMX_TILE)) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & BF16)) return false;
    return tiles_permitted();
}

// Tiles 0 to 7, all of 16 rows of 64 bytes, on this thread until `close_tiles`.
GPTOSS_INLINE void open_tiles() {
    struct alignas(64) {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    static_assert(sizeof(shape) == 64, "as the processor reads it");
    _tile_loadconfig(&shape);
}
GPTOSS_INLINE void close_tiles() { _tile_release(); }

}  // namespace amx
}  // namespace gptoss
