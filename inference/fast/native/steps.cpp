// What Python calls: a linear layer, and a transformer layer or half of it, for a few positions.
//
// One parallel region a call; threads meet at the barriers. The OpenMP runtime is torch's own, so
// that torch.set_num_threads holds here too.
#include <omp.h>
#include <vector>
#include "attend.h"
#include "products.h"

struct Layer {
    const void *attn_norm, *ffn_norm;  // (D,)
    double eps;
    Heads heads;
    Weights qkv, o, gate_up, down;
};

struct Keys {
    void *keys, *values;    // first of the rows in the pass, (R, G, T, E)
    Starts starts;          // where their new keys go
    int64_t longest;        // no start + S is beyond
};

enum Do : int64_t { ATTEND = 1, O = 2, GATE_UP = 4, DOWN = 8 };

namespace {

int64_t whole(int64_t n) { return (n + WIDTH - 1) / WIDTH * WIDTH; }

// Grows and is kept; each thread that calls has its own.
class Scratch {
    std::vector<char> memory;
    size_t used = 0;

  public:
    void begin(size_t bytes) {
        used = 0;
        if (memory.size() < bytes + 1024) memory.resize(bytes + 1024);  // 64 to align each piece
    }

    template <class X>
    X* take(size_t count, bool zeros = false) {
        size_t at = (size_t(memory.data()) + used + 63) / 64 * 64 - size_t(memory.data());
        used = at + count * sizeof(X);
        if (zeros) std::memset(memory.data() + at, 0, count * sizeof(X));
        return (X*)(memory.data() + at);
    }
};

thread_local Scratch scratch;

template <class T, class X>
void run_linear(const Weights& w, const T* x, T* y, int64_t n) {
    int all = omp_get_max_threads();
    int64_t line = padded(w.in), lanes = whole(n) * GROUP * WIDTH;
    scratch.begin(whole(n) * line * sizeof(X) + all * lanes * 4 + 256);
    X* inputs = scratch.take<X>(whole(n) * line, line != w.in);
    float* sums = scratch.take<float>(all * lanes);
#pragma omp parallel num_threads(all)
    {
        int me = omp_get_thread_num(), all = omp_get_num_threads();  // may be fewer than asked for
        copy(x, n, w.in, inputs, line, me, all);
#pragma omp barrier
        multiply(w, inputs, n, sums + me * lanes, me, all, [&](int64_t b, int64_t j, float* v) {
            int64_t at = b * WIDTH, count = w.out - at < WIDTH ? w.out - at : WIDTH;
            for (int64_t i = 0; i < count; i++) narrow(v[i], y[j * w.out + at + i]);
        });
    }
}

// Writes y = base + x W'; y may be base.
template <class T, class X>
void add_product(const Weights& w, const X* x, int64_t n, const T* base, T* y, float* sums, int me,
                 int all) {
    multiply(w, x, n, sums, me, all, [&](int64_t b, int64_t j, float* v) {
        int64_t at = j * w.out + b * WIDTH, left = w.out - b * WIDTH;
        int64_t count = left < WIDTH ? left : WIDTH;
        for (int64_t i = 0; i < count; i++) narrow(wide(base[at + i]) + v[i], y[at + i]);
    });
}

// Writes silu(gate) * up to out (n, line).
template <class X, class Y>
void gate(const Weights& w, const X* x, int64_t n, Y* out, int64_t line, float* sums, int me,
          int all) {
    multiply(w, x, n, sums, me, all, [&](int64_t b, int64_t j, float* v) {
        int64_t at = b / 2 * WIDTH, count = w.out - at < WIDTH ? w.out - at : WIDTH;
        for (int64_t i = 0; i < count; i++) {
            float gated = v[i] / (1 + fast_exp(-v[i])) * v[i + WIDTH];
            narrow(gated, out[j * line + at + i]);
        }
    });
}

// Memory that the threads of one call share. Layers of a model have the same shape.
template <class X>
struct Shared {
    X *normed, *middle;
    float *projected, *sums, *scores;
    int64_t n, line, heads_line, inner_line, lanes, longest;

    Shared(const Layer& l, int64_t rows, int64_t longest_row, int all) {
        n = rows, longest = longest_row + 16;
        int64_t heads_width = l.heads.query * l.heads.width, inner = l.gate_up.out;
        line = padded(l.qkv.in), heads_line = padded(heads_width), inner_line = padded(inner);
        int64_t most = inner_line > heads_line ? inner_line : heads_line;
        bool gaps = line != l.qkv.in || heads_line != heads_width || inner_line != inner;
        lanes = whole(n) * GROUP * WIDTH;
        scratch.begin(whole(n) * (line + most) * sizeof(X) +
                      (n * l.qkv.out + all * (lanes + longest)) * 4);
        normed = scratch.take<X>(whole(n) * line, gaps);
        middle = scratch.take<X>(whole(n) * most, gaps);
        projected = scratch.take<float>(n * l.qkv.out);
        sums = scratch.take<float>(all * lanes);
        scores = scratch.take<float>(all * longest);
    }
};

// Attention up to what its heads gathered, (n, to_line).
template <class T, class X, class Y>
void gather(const Layer& l, const Pass& p, const Keys& c, const T* h, const Shared<X>& s, Y* to,
            int64_t to_line, int me, int all) {
    int64_t width = l.qkv.in, projections = l.qkv.out;
    norm(h, (const T*)l.attn_norm, float(l.eps), s.n, width, s.normed, s.line, me, all);
#pragma omp barrier
    multiply(l.qkv, s.normed, s.n, s.sums + me * s.lanes, me, all,
             [&](int64_t b, int64_t j, float* v) {
                 int64_t at = b * WIDTH, left = projections - at;
                 std::memcpy(s.projected + j * projections + at, v,
                             4 * (left < WIDTH ? left : WIDTH));
             });
#pragma omp barrier
    place(p, l.heads, s.projected, c.starts, (T*)c.keys, (T*)c.values, me, all);
#pragma omp barrier
    attend(p, l.heads, s.projected, c.starts, (const T*)c.keys, (const T*)c.values,
           s.scores + me * s.longest, to, to_line, me, all);
#pragma omp barrier
}

// One layer, or parts of it, from h to out, which may be h; half a layer ends inside it.
template <class T, class X>
void run_layer(const Layer& l, const Pass& p, const Keys& c, const T* h, T* out, int64_t what,
               const Shared<X>& s, int me, int all) {
    float* sums = s.sums + me * s.lanes;
    int64_t inner = l.gate_up.out, width = l.qkv.in;
    if ((what & ATTEND) && (what & O)) {
        gather(l, p, c, h, s, s.middle, s.heads_line, me, all);
        add_product(l.o, s.middle, s.n, h, out, sums, me, all);
#pragma omp barrier
        h = out;
    } else if (what & ATTEND) {
        gather(l, p, c, h, s, out, l.heads.query * l.heads.width, me, all);
    }
    if (what & GATE_UP) {
        norm(h, (const T*)l.ffn_norm, float(l.eps), s.n, width, s.normed, s.line, me, all);
#pragma omp barrier
        if (what & DOWN)
            gate(l.gate_up, s.normed, s.n, s.middle, s.inner_line, sums, me, all);
        else
            gate(l.gate_up, s.normed, s.n, out, inner, sums, me, all);
#pragma omp barrier
    }
    if (what & DOWN) {
        add_product(l.down, s.middle, s.n, h, out, sums, me, all);
#pragma omp barrier
    }
}

template <class T, class X>
void run_layers(const Layer* const* layers, const Keys* keys, const int64_t* what, int64_t count,
                const Pass& p, const T* h, T* out) {
    int all = omp_get_max_threads();
    int64_t longest = 0;
    for (int64_t i = 0; i < count; i++) longest = keys[i].longest > longest ? keys[i].longest : longest;
    Shared<X> shared(*layers[0], p.rows * p.positions, longest, all);
#pragma omp parallel num_threads(all)
    for (int64_t i = 0; i < count; i++)
        run_layer(*layers[i], p, keys[i], i ? out : h, out, what[i], shared, omp_get_thread_num(),
                  omp_get_num_threads());
}

}  // namespace

extern "C" {

int64_t skip_has_tiles() { return ask_for_tiles(); }

void skip_linear_float(const Weights* w, const float* x, float* y, int64_t n) {
    run_linear<float, float>(*w, x, y, n);
}

void skip_linear_bf16(const Weights* w, const bf16* x, bf16* y, int64_t n) {
    if (in_tiles(*w))
        run_linear<bf16, bf16>(*w, x, y, n);
    else
        run_linear<bf16, float>(*w, x, y, n);
}

// Layers one after another, each (what) whole but for a single one; h and out are (n, D).
void skip_layers_float(const Layer* const* layers, const Keys* keys, const int64_t* what,
                       int64_t count, const Pass* p, const float* h, float* out) {
    run_layers<float, float>(layers, keys, what, count, *p, h, out);
}

void skip_layers_bf16(const Layer* const* layers, const Keys* keys, const int64_t* what,
                      int64_t count, const Pass* p, const bf16* h, bf16* out) {
    if (in_tiles(layers[0]->qkv))
        run_layers<bf16, bf16>(layers, keys, what, count, *p, h, out);
    else
        run_layers<bf16, float>(layers, keys, what, count, *p, h, out);
}
}
