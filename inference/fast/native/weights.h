// A matrix as it lies in memory, in the ways that inference/fast/pack.py lays it.
#pragma once
#include "numbers.h"

enum Kind : int64_t { ROWS_FLOAT = 0, ROWS_BF16 = 1, ROWS_INT8 = 2, TILES = 3, TILES_INT8 = 4 };

struct Weights {
    const void* data;
    const float* scale;  // of int8, else null; for each feature, block by block
    const float* bias;   // or null; as scale
    int64_t in, out;     // K, and N features of the result
    int64_t kind;
    int64_t gated;  // two matrices of N features, one gating the other: their blocks alternate
};

constexpr int64_t WIDTH = 16;  // features of a block
constexpr int64_t GROUP = 4;   // blocks computed together
constexpr int64_t DEPTH = 32;  // inputs of a tile

inline int64_t blocks(const Weights& w) {
    return (w.out + WIDTH - 1) / WIDTH * (w.gated ? 2 : 1);
}

inline bool in_tiles(const Weights& w) { return w.kind >= TILES; }

// Inputs of a row in the scratch: whole tiles, the rest zeros.
inline int64_t padded(int64_t in) { return (in + DEPTH - 1) / DEPTH * DEPTH; }
