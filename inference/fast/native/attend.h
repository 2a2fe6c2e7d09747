// Rotary positions, the key-value cache, and attention of a few queries over it.
//
// Letters: R rows, S positions of a row in flight, n = R * S, H query heads, G kv heads, E head width.
#pragma once
#include <vector>
#include "rows.h"

struct Pass {
    const void *cos, *sin;              // (1 or R, S, E)
    int64_t angle_row, angle_position;  // their strides
    int64_t rows, positions;            // R and S
    int64_t cache_row, cache_head;      // strides of the cache (R, G, T, E); a key's numbers lie together
};

struct Starts {
    const int64_t* first;
    int64_t stride;
    int64_t of(int64_t row) const { return first[row * stride]; }
};

struct Heads {
    int64_t query, kv, width;  // H, G, E
};

// Turns one head by the angles of its position, as models/rope.py does; the sine has its sign.
template <class T>
inline void turn(const float* x, const T* cos, const T* sin, int64_t width, float* out) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        out[i] = x[i] * wide(cos[i]) + x[i + half] * wide(sin[i]);
        out[i + half] = x[i + half] * wide(cos[i + half]) + x[i] * wide(sin[i + half]);
    }
}

// Of projections (n, (H + 2G) E): turns queries where they are, writes keys and values to the cache.
template <class T>
void place(const Pass& p, const Heads& heads, float* projected, const Starts& starts, T* keys,
           T* values, int me, int all) {
    int64_t per_row = heads.query + 2 * heads.kv, width = heads.width;
    Share mine = share(p.rows * p.positions * per_row, me, all);
    std::vector<float> turned(width);
    for (int64_t item = mine.begin; item < mine.end; item++) {
        int64_t n = item / per_row, head = item % per_row, r = n / p.positions, s = n % p.positions;
        float* x = projected + item * width;
        if (head < heads.query + heads.kv) {
            int64_t angle = r * p.angle_row + s * p.angle_position;
            turn(x, (const T*)p.cos + angle, (const T*)p.sin + angle, width, turned.data());
        }
        if (head < heads.query) {
            std::memcpy(x, turned.data(), width * 4);
            continue;
        }
        bool is_key = head < heads.query + heads.kv;
        int64_t g = (head - heads.query) % heads.kv;
        T* to = (is_key ? keys : values) + r * p.cache_row + g * p.cache_head + (starts.of(r) + s) * width;
        for (int64_t i = 0; i < width; i++) narrow(is_key ? turned[i] : x[i], to[i]);
    }
}

template <class T>
inline float dot(const float* q, const T* k, int64_t width) {
    Lanes sum = {};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) sum += load(q + i) * load(k + i);
    float out = total(sum);
    for (; i < width; i++) out += q[i] * wide(k[i]);
    return out;
}

// One query over `length` keys; scores and sums have room for them and for the head.
template <class T>
void look(const float* q, const T* keys, const T* values, int64_t length, int64_t width,
          float* scores, float* out) {
    float most = -INFINITY, all = 0, scale = 1 / std::sqrt(float(width));
    for (int64_t t = 0; t < length; t++) {
        scores[t] = dot(q, keys + t * width, width) * scale;
        most = scores[t] > most ? scores[t] : most;
    }
    for (int64_t t = 0; t < length; t++) scores[t] = fast_exp(scores[t] - most);
    for (int64_t t = 0; t < length; t++) all += scores[t];
    for (int64_t i = 0; i < width; i++) out[i] = 0;
    for (int64_t t = 0; t < length; t++) {
        const T* value = values + t * width;
        float weight = scores[t] / all;
        for (int64_t i = 0; i < width; i++) out[i] += weight * wide(value[i]);
    }
}

// Every query sees its own position and all before it. out (n, line) of type X.
template <class T, class X>
void attend(const Pass& p, const Heads& heads, const float* projected, const Starts& starts,
            const T* keys, const T* values, float* scores, X* out, int64_t line, int me, int all) {
    int64_t width = heads.width, per_row = heads.query + 2 * heads.kv;
    Share mine = share(p.rows * p.positions * heads.query, me, all);
    std::vector<float> result(width);
    for (int64_t item = mine.begin; item < mine.end; item++) {
        int64_t n = item / heads.query, head = item % heads.query;
        int64_t r = n / p.positions, s = n % p.positions, g = head / (heads.query / heads.kv);
        int64_t from = r * p.cache_row + g * p.cache_head;
        look(projected + (n * per_row + head) * width, keys + from, values + from,
             starts.of(r) + s + 1, width, scores, result.data());
        X* to = out + n * line + head * width;
        for (int64_t i = 0; i < width; i++) narrow(result[i], to[i]);
    }
}
