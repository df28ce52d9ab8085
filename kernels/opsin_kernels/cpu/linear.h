/* Products with weights, whatever they are stored as. */
#pragma once

#include <stdint.h>

enum { INT4, INT8, FP8, TABLE4, FLOAT32, BFLOAT16, FLOAT16 };

/* A weight [n, k]. codes: of `form`; FLOAT32: float32, which like numbers of 16 bits has no scale. scale, offset [n, k / group], offset may be NULL; half: they are
 * float16. table: what 16 codes name. */
typedef struct {
    const void *codes, *scale, *offset;
    const float *table;
    int64_t n, k, group, half, form;
} weight_t;

/* x [m, k] -> out [m, n]. 0: there was no memory. */
int linear(float *out, const float *x, int64_t m, const weight_t *w, int64_t threads);
