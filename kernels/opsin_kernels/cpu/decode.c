/* What a step does between its products, for rows of float32: turns, and attention over the paged pool. Definitions are in
 * opsin_kernels.rotary and attention. Every row is computed alone, in one order: its result does not
 * depend on its neighbours, to the bit. Widths are multiples of LANES.
 */
#include "decode.h"

#include <math.h>

#include "pool.h"
#include "vectors.h"

/* A row of a pool of 8 bits: codes, and a float32 scale behind them. Source: opsin_kernels.kv_rows. */
#define LARGEST 127.0f
#define SCALE_BYTES 4

static void store_eight(int8_t *to, const float *from, int64_t width) {
    float most = 0.0f;
    for (int64_t i = 0; i < width; i++) most = fabsf(from[i]) > most ? fabsf(from[i]) : most;
    float scale = (most > 1e-12f ? most : 1e-12f) / LARGEST;
    for (int64_t i = 0; i < width; i++) to[i] = (int8_t)rintf(from[i] / scale);
    memcpy(to + width, &scale, SCALE_BYTES);
}

static inline int64_t row_bytes(int64_t width, int64_t eight) {
    return eight ? width + SCALE_BYTES : width * (int64_t)sizeof(float);
}

void rotate_and_store(float *qkv, const float *cos, const float *sin, char *pool, const int64_t *slots, int64_t rows,
                      int64_t heads, int64_t kv_heads, int64_t width, int64_t eight) {
    const int64_t half = width / 2, all = (heads + 2 * kv_heads) * width, size = row_bytes(width, eight);
    for (int64_t row = 0; row < rows; row++) {
        const float *c = cos + row * width, *s = sin + row * width, *kv = qkv + row * all + heads * width;
        for (int64_t head = 0; head < heads + kv_heads; head++) {
            float *low = qkv + row * all + head * width, *high = low + half;
            for (int64_t i = 0; i < half; i += LANES) {
                floats a = load(low + i), b = load(high + i);
                store(low + i, a * load(c + i) + b * load(s + i));
                store(high + i, b * load(c + half + i) + a * load(s + half + i));
            }
        }
        if (slots[row] < 0) continue; /* of a batch that is filled up */
        char *to = pool + slots[row] * 2 * kv_heads * size;
        if (!eight)
            memcpy(to, kv, (size_t)(2 * kv_heads * size));
        else
            for (int64_t i = 0; i < 2 * kv_heads; i++) store_eight((int8_t *)to + i * size, kv + i * width, width);
    }
}

#define GROUP 8 /* queries of a key's head that are worked on at a time */

INLINE floats numbers(const char *row, int64_t i, int eight) {
    if (!eight) return load((const float *)row + i);
    return __builtin_convertvector((widened((const uint8_t *)row + i) << 24) >> 24, floats);
}

/* What the numbers of a row are multiplied with. */
INLINE float factor(const char *row, int64_t width, int eight) {
    float scale = 1.0f;
    if (eight) memcpy(&scale, row + width, SCALE_BYTES);
    return scale;
}

/* Of one sequence's newest row and one head of keys: q [group, width] -> out. Tokens are taken LANES at a time, each time
 * with the largest score so far. token, values: bytes from a token to the next, and from its key to its value. */
INLINE void attend_head(float *out, const float *q, const char *pool, const int64_t *blocks, int64_t block, int64_t length,
                        int64_t token, int64_t values, int64_t group, int64_t width, float scale, int eight) {
    floats shares[GROUP];
    float largest[GROUP];
    for (int64_t h = 0; h < group; h++) {
        shares[h] = (floats){0}, largest[h] = -INFINITY;
        memset(out + h * width, 0, (size_t)width * sizeof(float));
    }
    for (int64_t at = 0; at < length; at += LANES) {
        int64_t count = length - at < LANES ? length - at : LANES;
        const char *rows[LANES];
        float scores[GROUP][LANES], of_keys[LANES], of_values[LANES];
        for (int64_t t = 0; t < LANES; t++) {
            int64_t place = t < count ? at + t : at; /* (those behind the end have no weight) */
            rows[t] = pool + (blocks[place / block] * block + place % block) * token;
            of_keys[t] = factor(rows[t], width, eight), of_values[t] = factor(rows[t] + values, width, eight);
        }
        for (int64_t h = 0; h < group; h++) {
            floats dots[LANES] = {0};
            for (int64_t i = 0; i < width; i += LANES) {
                floats one = load(q + h * width + i);
                EACH for (int t = 0; t < LANES; t++) dots[t] += one * numbers(rows[t], i, eight);
            }
            store(scores[h], sums(dots) * load(of_keys) * scale);
        }
        for (int64_t h = 0; h < group; h++) {
            float most = largest[h];
            for (int64_t t = 0; t < count; t++) most = scores[h][t] > most ? scores[h][t] : most;
            if (most > largest[h]) {
                float kept = largest[h] == -INFINITY ? 0.0f : expf(largest[h] - most);
                shares[h] *= kept, largest[h] = most;
                for (int64_t i = 0; i < width; i += LANES) store(out + h * width + i, load(out + h * width + i) * kept);
            }
            for (int64_t t = count; t < LANES; t++) scores[h][t] = -INFINITY;
            floats weights = exponential(load(scores[h]) - most);
            for (int64_t t = count; t < LANES; t++) weights[t] = 0.0f;
            shares[h] += weights;
            store(scores[h], weights * load(of_values));
        }
        for (int64_t h = 0; h < group; h++)
            for (int64_t i = 0; i < width; i += LANES) {
                floats found = load(out + h * width + i);
                for (int64_t t = 0; t < count; t++) found += scores[h][t] * numbers(rows[t] + values, i, eight);
                store(out + h * width + i, found);
            }
    }
    for (int64_t h = 0; h < group; h++) {
        float share = 1.0f / sum(shares[h]);
        for (int64_t i = 0; i < width; i += LANES) store(out + h * width + i, load(out + h * width + i) * share);
    }
}

typedef struct {
    float *out;
    const float *q;
    const char *pool;
    const int64_t *table, *lengths;
    int64_t pages, block, q_stride, heads, kv_heads, width, eight;
} attention_t;

/* Heads of keys, of all sequences. */
static void attend_part(void *given, int64_t from, int64_t to) {
    const attention_t *a = given;
    const int64_t group = a->heads / a->kv_heads, width = a->width, size = row_bytes(width, a->eight);
    const int64_t token = 2 * a->kv_heads * size, values = a->kv_heads * size;
    const float scale = 1.0f / sqrtf((float)width);
    for (int64_t i = from; i < to; i++) {
        int64_t s = i / a->kv_heads, k = i % a->kv_heads;
        const char *pool = a->pool + k * size;
        const int64_t *blocks = a->table + s * a->pages;
        for (int64_t first = 0; first < group; first += GROUP) {
            int64_t count = group - first < GROUP ? group - first : GROUP, head = k * group + first;
            float *out = a->out + (s * a->heads + head) * width;
            const float *q = a->q + s * a->q_stride + head * width;
            if (a->eight)
                attend_head(out, q, pool, blocks, a->block, a->lengths[s], token, values, count, width, scale, 1);
            else
                attend_head(out, q, pool, blocks, a->block, a->lengths[s], token, values, count, width, scale, 0);
        }
    }
}

void attend(float *out, const float *q, const char *pool, const int64_t *table, const int64_t *lengths, int64_t sequences,
            int64_t pages, int64_t block, int64_t q_stride, int64_t heads, int64_t kv_heads, int64_t width, int64_t eight,
            int64_t threads) {
    attention_t job = {out, q, pool, table, lengths, pages, block, q_stride, heads, kv_heads, width, eight};
    shared(attend_part, &job, sequences * kv_heads, 1, threads);
}
