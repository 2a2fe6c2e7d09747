// x W' for a few rows x, by whichever unit the weights lie for; and the RMS norm before it.
#pragma once
#include "rows.h"
#include "tiles.h"

// out (n, 4, 16) of feature blocks block..block + count; x as `tile_group` and `row_group` want it.
inline void group(const Weights& w, int64_t block, int64_t count, const bf16* x, int64_t n,
                  float* out) {
    tile_group(w, block, count, x, n, out);
}

inline void group(const Weights& w, int64_t block, int64_t count, const float* x, int64_t n,
                  float* out) {
    for (int64_t i = 0; i < count; i++) {
        int64_t b = block + i, at = (w.gated ? b / 2 : b) * WIDTH;
        int64_t some = w.out - at < WIDTH ? w.out - at : WIDTH;
        int64_t first = at + (w.gated && b % 2 ? w.out : 0);
        float* to = out + i * WIDTH;
        if (w.kind == ROWS_FLOAT) row_group((const float*)w.data, w.in, first, some, x, n, to);
        if (w.kind == ROWS_BF16) row_group((const bf16*)w.data, w.in, first, some, x, n, to);
        if (w.kind == ROWS_INT8) row_group((const int8_t*)w.data, w.in, first, some, x, n, to);
    }
}

// Calls emit(block, row, values): 16 sums, scaled and with bias. Of a gated pair of matrices only the
// even blocks come, with the other matrix's sums of the same features 16 further on.
template <class X, class Emit>
void multiply(const Weights& w, const X* x, int64_t n, float* out, int me, int all, Emit emit) {
    if (in_tiles(w)) configure(n < WIDTH ? n : WIDTH);
    Share mine = share(blocks(w), me, all, w.gated ? 2 : 1);
    for (int64_t block = mine.begin; block < mine.end; block += GROUP) {
        int64_t count = mine.end - block < GROUP ? mine.end - block : GROUP;
        group(w, block, count, x, n, out);
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < count; i++) {
                float* values = out + (j * GROUP + i) * WIDTH;
                int64_t at = (block + i) * WIDTH;
                if (w.scale)
                    for (int64_t c = 0; c < WIDTH; c++) values[c] *= w.scale[at + c];
                if (w.bias)
                    for (int64_t c = 0; c < WIDTH; c++) values[c] += w.bias[at + c];
                if (!w.gated) emit(block + i, j, values);
                if (w.gated && i % 2) emit(block + i - 1, j, values - WIDTH);
            }
    }
    if (in_tiles(w)) release();
}

// out (n, line) of x (n, width), each row's root mean square 1, times the weight.
template <class T, class X>
void norm(const T* x, const T* weight, float eps, int64_t n, int64_t width, X* out, int64_t line,
          int me, int all) {
    Share mine = share(n, me, all);
    for (int64_t j = mine.begin; j < mine.end; j++) {
        const T* row = x + j * width;
        Lanes squares = {};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) squares += load(row + i) * load(row + i);
        float sum = total(squares);
        for (; i < width; i++) sum += wide(row[i]) * wide(row[i]);
        float scale = 1 / std::sqrt(sum / float(width) + eps);
        for (i = 0; i < width; i++) narrow(wide(row[i]) * scale * wide(weight[i]), out[j * line + i]);
    }
}

// out (n, line) of x (n, width), in the type that products take.
template <class T, class X>
void copy(const T* x, int64_t n, int64_t width, X* out, int64_t line, int me, int all) {
    Share mine = share(n, me, all);
    for (int64_t j = mine.begin; j < mine.end; j++)
        for (int64_t i = 0; i < width; i++) narrow(wide(x[j * width + i]), out[j * line + i]);
}
