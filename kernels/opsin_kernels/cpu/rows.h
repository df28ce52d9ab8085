/* What happens to rows of float32 between products. Widths are multiples of LANES. */
#pragma once

#include <stdint.h>

/* x [rows, width] -> out = x / rms(x) * weight; out may be x. eps: one number. */
void rms_norm(float *out, const float *x, const float *weight, int64_t rows, int64_t width, const float *eps);

/* x and delta [rows, width] -> sum = x + delta, and its norm; sum may be x. */
void add_rms_norm(float *out, float *sum, const float *x, const float *delta, const float *weight, int64_t rows,
                  int64_t width, const float *eps);

/* gate_up [rows, 2 * width] -> out [rows, width] = gate / (1 + e^-gate) * up. */
void silu_gated(float *out, const float *gate_up, int64_t rows, int64_t width);

/* x [rows, width], `stride` apart, of any width: -inf where a bit of mask [rows, words] is 0, the lowest bit first. */
void forbid(float *x, const uint32_t *mask, int64_t rows, int64_t width, int64_t stride, int64_t words);
