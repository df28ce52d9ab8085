/* Turns and attention of rows that are the newest of their sequences. */
#pragma once

#include <stdint.h>

/* qkv [rows, heads + 2 * kv_heads, width], changed in place; cos, sin [rows, width], the first half of sin negated; pool
 * [slots, 2 * kv_heads, width], of float32 or in 8 bits. */
void rotate_and_store(float *qkv, const float *cos, const float *sin, char *pool, const int64_t *slots, int64_t rows,
                      int64_t heads, int64_t kv_heads, int64_t width, int64_t eight);

/* q: rows `q_stride` apart, [heads, width] each; pool [blocks, block, 2 * kv_heads, width], of float32 or in 8 bits; table
 * [sequences, pages]. out [sequences, heads, width]. */
void attend(float *out, const float *q, const char *pool, const int64_t *table, const int64_t *lengths, int64_t sequences,
            int64_t pages, int64_t block, int64_t q_stride, int64_t heads, int64_t kv_heads, int64_t width, int64_t eight,
            int64_t threads);
