// Numbers of two widths, and how threads share work. Everything is summed in float.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct bf16 {
    uint16_t bits;
};

inline float wide(float x) { return x; }

inline float wide(int8_t x) { return x; }

inline float wide(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline void narrow(float x, float& out) { out = x; }

// To nearest, ties to even; NaN stays NaN.
inline void narrow(float x, bf16& out) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out.bits = uint16_t(x == x ? rounded : 0x7fc0);
}

// exp to 2 units of float, written so that a compiler can do many at once.
inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float n = std::nearbyintf(x * 1.44269504f);
    float r = x - n * 0.693145752f - n * 1.42860677e-6f;
    float p = 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

struct Share {
    int64_t begin, end;
};

// The part of `count` items that thread `me` of `all` does, in steps of `unit`.
inline Share share(int64_t count, int me, int all, int64_t unit = 1) {
    int64_t units = (count + unit - 1) / unit;
    int64_t begin = units * me / all * unit, end = units * (me + 1) / all * unit;
    return {begin, end < count ? end : count};
}
