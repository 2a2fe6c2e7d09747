// Products on any processor: weights lie as in torch, a feature's inputs in a row.
//
// As with tiles, each sum has an order of its own that other rows do not change.
#pragma once
#include "weights.h"

constexpr int LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * 4)));

template <class W>
inline Lanes load(const W* from) {
    Lanes out;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) out[i] = wide(from[i]);
    return out;
}

template <>
inline Lanes load(const float* from) {
    Lanes out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

template <>
inline Lanes load(const bf16* from) {
    typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
    typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Lanes)(__builtin_convertvector(halves, Words) << 16);
}

template <>
inline Lanes load(const int8_t* from) {
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    typedef int32_t Words __attribute__((vector_size(LANES * 4)));
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Words), Lanes);
}

template <int N>
inline float total(const float* x) {
    typedef float Half __attribute__((vector_size(N * 2)));
    Half low, high;
    std::memcpy(&low, x, sizeof low);
    std::memcpy(&high, x + N / 2, sizeof high);
    low += high;
    float sums[N / 2];
    std::memcpy(sums, &low, sizeof sums);
    return total<N / 2>(sums);
}

template <>
inline float total<2>(const float* x) {
    return x[0] + x[1];
}

inline float total(Lanes x) {
    float parts[LANES];
    std::memcpy(parts, &x, sizeof parts);
    return total<LANES>(parts);
}

// out[j * line + f]: F features for J rows of x (n, padded K), which ends with zeros.
template <int F, int J, class W>
inline void dots(const W* w, int64_t in, const float* x, int64_t stride, float* out, int64_t line) {
    Lanes sums[F][J] = {};
    int64_t k = 0;
    for (; k + LANES <= in; k += LANES) {
        Lanes inputs[J];
#pragma GCC unroll 8
        for (int j = 0; j < J; j++) inputs[j] = load(x + j * stride + k);
#pragma GCC unroll 8
        for (int f = 0; f < F; f++) {
            Lanes weights = load(w + f * in + k);
#pragma GCC unroll 8
            for (int j = 0; j < J; j++) sums[f][j] += weights * inputs[j];
        }
    }
#pragma GCC unroll 8
    for (int f = 0; f < F; f++)
#pragma GCC unroll 8
        for (int j = 0; j < J; j++) {
            float sum = total(sums[f][j]);
            for (int64_t i = k; i < in; i++) sum += wide(w[f * in + i]) * x[j * stride + i];
            out[j * line + f] = sum;
        }
}

template <int F, class W>
inline void some_features(const W* w, int64_t in, const float* x, int64_t stride, int64_t n,
                          float* out, int64_t line) {
    int64_t j = 0;
    for (; n - j >= 4; j += 4) dots<F, 4>(w, in, x + j * stride, stride, out + j * line, line);
    for (; n - j >= 2; j += 2) dots<F, 2>(w, in, x + j * stride, stride, out + j * line, line);
    if (j < n) dots<F, 1>(w, in, x + j * stride, stride, out + j * line, line);
}

// out (n, 4, 16) of the features first..first + count from x (n, padded K).
template <class W>
inline void row_group(const W* w, int64_t in, int64_t first, int64_t count, const float* x,
                      int64_t n, float* out) {
    int64_t stride = padded(in), f = 0;
    constexpr int64_t LINE = GROUP * WIDTH;
    for (; f + 4 <= count; f += 4)
        some_features<4>(w + (first + f) * in, in, x, stride, n, out + f, LINE);
    for (; f < count; f++)
        some_features<1>(w + (first + f) * in, in, x, stride, n, out + f, LINE);
}
