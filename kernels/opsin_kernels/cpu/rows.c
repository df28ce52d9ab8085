/* Definitions are in opsin_kernels.rms_norm and activations. Every row is computed alone, in one order: its result does not
 * depend on its neighbours, to the bit.
 */
#include "rows.h"

#include <math.h>

#include "vectors.h"

static float scale_of(const float *x, int64_t width, float eps) {
    floats even = {0}, odd = {0}; /* (two chains, since each waits for its last sum) */
    int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        floats a = load(x + i), b = load(x + i + LANES);
        even += a * a, odd += b * b;
    }
    if (i < width) even += load(x + i) * load(x + i);
    return 1.0f / sqrtf(sum(even + odd) / (float)width + eps);
}

void rms_norm(float *out, const float *x, const float *weight, int64_t rows, int64_t width, const float *eps) {
    for (int64_t row = 0; row < rows; row++, x += width, out += width) {
        float scale = scale_of(x, width, *eps);
        for (int64_t i = 0; i < width; i += LANES) store(out + i, load(x + i) * scale * load(weight + i));
    }
}

void add_rms_norm(float *out, float *sum, const float *x, const float *delta, const float *weight, int64_t rows,
                  int64_t width, const float *eps) {
    for (int64_t i = 0; i < rows * width; i += LANES) store(sum + i, load(x + i) + load(delta + i));
    rms_norm(out, sum, weight, rows, width, eps);
}

void silu_gated(float *out, const float *gate_up, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++, gate_up += 2 * width, out += width)
        for (int64_t i = 0; i < width; i += LANES) {
            floats gate = load(gate_up + i);
            ints negative = gate < 0.0f;
            floats small = exponential((floats)((ints)gate | (int)0x80000000)); /* e^-|gate| */
            floats top = (floats)(((ints)small & negative) | ((ints)every(1.0f) & ~negative));
            store(out + i, gate * (top / (1.0f + small)) * load(gate_up + width + i));
        }
}

void forbid(float *x, const uint32_t *mask, int64_t rows, int64_t width, int64_t stride, int64_t words) {
    for (int64_t row = 0; row < rows; row++, x += stride, mask += words)
        for (int64_t word = 0; 32 * word < width; word++) {
            if (mask[word] == UINT32_MAX) continue;
            int64_t left = width - 32 * word, count = left < 32 ? left : 32;
            float *at = x + 32 * word;
            for (int i = 0; i < count; i++) at[i] = mask[word] >> i & 1 ? at[i] : -INFINITY;
        }
}
