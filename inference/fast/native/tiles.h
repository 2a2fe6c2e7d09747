// Products on the matrix unit (AMX), of bfloat16 inputs with weights that lie in tiles.
//
// A tile holds 32 inputs of 16 features, 1 KiB, as pairs of inputs: what the unit's second operand
// wants. The first is rows of activations as they are. Each sum runs over the inputs in order, alone:
// a row's result does not depend on how many rows come with it.
#pragma once
#include "weights.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// Linux gives the unit's state to a process that asks.
inline bool ask_for_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

// Tiles 0..3 sum, 4..5 hold weights, 6..7 activations of `rows` rows.
inline void configure(int64_t rows) {
    TileConfig config;
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = 64;
        config.rows[i] = uint8_t(i < 4 || i > 5 ? rows : 16);
    }
    _tile_loadconfig(&config);
}

inline void release() { _tile_release(); }

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

constexpr int64_t TILE = DEPTH * WIDTH;  // weights

inline void widen_tile(const int8_t* from, bf16* to) {
    for (int i = 0; i < TILE; i += 32) {
        __m256i some = _mm256_loadu_si256((const __m256i*)(from + i));
        __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(some)));
        __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(some, 1)));
        __m512bh both = _mm512_cvtne2ps_pbh(high, low);
        std::memcpy(to + i, &both, 64);
    }
}

// Tiles of one feature block after another; int8 ones pass through a buffer that stays in the cache.
struct TileReader {
    const bf16* wide_data;
    const int8_t* small_data;
    int64_t depth;
    alignas(64) bf16 buffer[GROUP][TILE];

    explicit TileReader(const Weights& w) : depth(padded(w.in) / DEPTH) {
        wide_data = w.kind == TILES ? (const bf16*)w.data : nullptr;
        small_data = w.kind == TILES ? nullptr : (const int8_t*)w.data;
    }

    const bf16* tile(int64_t block, int64_t k, int slot) {
        int64_t offset = (block * depth + k) * TILE;
        if (wide_data) return wide_data + offset;
        widen_tile(small_data + offset, buffer[slot]);
        asm volatile("" ::: "memory");  // loading a tile does not tell the compiler that it reads
        return buffer[slot];
    }
};

// out (rows, 4, 16): four feature blocks of up to 16 rows. Missing blocks repeat the last.
inline void few_rows(TileReader& w, int64_t block, int64_t count, const bf16* x, int64_t stride,
                     float* out) {
    int64_t b[GROUP];
    for (int64_t i = 0; i < GROUP; i++) b[i] = block + (i < count ? i : count - 1);
    zero_sums();
    for (int64_t k = 0; k < w.depth; k++) {
        _tile_loadd(6, x + k * DEPTH, stride * 2);
        _tile_loadd(4, w.tile(b[0], k, 0), 64);
        _tile_dpbf16ps(0, 6, 4);
        _tile_loadd(5, w.tile(b[1], k, 1), 64);
        _tile_dpbf16ps(1, 6, 5);
        _tile_loadd(4, w.tile(b[2], k, 2), 64);
        _tile_dpbf16ps(2, 6, 4);
        _tile_loadd(5, w.tile(b[3], k, 3), 64);
        _tile_dpbf16ps(3, 6, 5);
    }
    constexpr int64_t LINE = GROUP * WIDTH;
    _tile_stored(0, out, LINE * 4);
    _tile_stored(1, out + WIDTH, LINE * 4);
    _tile_stored(2, out + 2 * WIDTH, LINE * 4);
    _tile_stored(3, out + 3 * WIDTH, LINE * 4);
}

// out (32, 4, 16), of which two feature blocks are written, for 32 rows.
inline void many_rows(TileReader& w, int64_t block, bool both, const bf16* x, int64_t stride,
                      float* out) {
    zero_sums();
    for (int64_t k = 0; k < w.depth; k++) {
        _tile_loadd(4, w.tile(block, k, 0), 64);
        _tile_loadd(5, w.tile(block + both, k, 1), 64);
        _tile_loadd(6, x + k * DEPTH, stride * 2);
        _tile_dpbf16ps(0, 6, 4);
        _tile_dpbf16ps(1, 6, 5);
        _tile_loadd(7, x + 16 * stride + k * DEPTH, stride * 2);
        _tile_dpbf16ps(2, 7, 4);
        _tile_dpbf16ps(3, 7, 5);
    }
    constexpr int64_t LINE = GROUP * WIDTH;
    _tile_stored(0, out, LINE * 4);
    _tile_stored(1, out + WIDTH, LINE * 4);
    _tile_stored(2, out + 16 * LINE, LINE * 4);
    _tile_stored(3, out + 16 * LINE + WIDTH, LINE * 4);
}

// out (n, 4, 16) of `count` feature blocks from x (n, padded K); beyond 16 rows, x and out have
// room for whole blocks of 16.
inline void tile_group(const Weights& weights, int64_t block, int64_t count, const bf16* x,
                       int64_t n, float* out) {
    TileReader w(weights);
    int64_t stride = padded(weights.in), row = 0;
    for (; n - row > 16; row += 32)
        for (int64_t i = 0; i < count; i += 2)
            many_rows(w, block + i, i + 1 < count, x + row * stride, stride,
                      out + row * GROUP * WIDTH + i * WIDTH);
    if (row < n) few_rows(w, block, count, x + row * stride, stride, out + row * GROUP * WIDTH);
}

#else

inline bool ask_for_tiles() { return false; }
inline void configure(int64_t) {}
inline void release() {}
inline void tile_group(const Weights&, int64_t, int64_t, const bf16*, int64_t, float*) {}

#endif
