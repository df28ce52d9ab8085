/* out[m, n] = sum over k of x[m, k] * w[n, k], of a weight that is stored as codes and is a float only in the cache.
 *
 * A few rows of the weight are turned into floats, and all rows of x are multiplied with them; of one row of x nothing
 * is written in between. Each output is one sum in one order (LANES partial sums along k, added up as a tree), however
 * many rows x has and whichever thread has it: so a row's result does not depend on its neighbours, to the bit.
 *
 * Plain C with GCC's vectors, in the width of the processor; what compilers make of bytes is helped along on x86. Layouts are those of opsin_kernels.int4_linear, int8_linear, fp8_linear and table4_linear.
 */
#include <stdatomic.h>

#include "pool.h"
#include "vectors.h"

/* Of the weight, that are floats at a time; ROWS * BATCH sums stay in registers. */
#define ROWS 4
#define AHEAD 4 /* times as many rows */
#define UNIT 64 /* of the weight, that a thread has at least */

/* A weight [n, k]. scale, offset [n, k / group], offset may be NULL; half: they are float16. table: what codes name. */
typedef struct {
    const void *codes, *scale, *offset;
    const float *table;
    int64_t n, k, group, half;
} weight_t;

/* The rows of a product, which threads share by rows of the weight. */
typedef struct {
    float *out;
    const float *x;
    int64_t m;
    const weight_t *w;
    atomic_int *failed;
} job_t;

static inline float of_bits(uint32_t bits) {
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

/* A float16 has five bits of exponent: the number is that of a float32 of the same bits, times 2^112. */
static inline float number(const void *numbers, int64_t i, int64_t half) {
    if (!half) return ((const float *)numbers)[i];
    uint32_t bits = ((const uint16_t *)numbers)[i];
    return of_bits((bits & 0x8000) << 16 | (bits & 0x7fff) << 13) * 0x1p112f;
}

static inline void scaled(const weight_t *w, int64_t i, float *scale, float *offset) {
    *scale = number(w->scale, i, w->half);
    *offset = w->offset ? number(w->offset, i, w->half) : 0.0f;
}

static inline floats named(const float *table, ints codes) {
#if defined(__AVX512F__)
    return (floats)_mm512_permutexvar_ps((__m512i)codes, _mm512_loadu_ps(table));
#else
    floats found;
    for (int i = 0; i < LANES; i++) found[i] = table[codes[i]];
    return found;
#endif
}

/* LANES inputs of a group, from number `i` of a part of it on. Two codes of four bits share a byte, half a group apart:
 * such a group has two parts, in the low and in the high bits of the same bytes. */
#define FORM(name, parts, values)                                                                                     \
    enum { name##_parts = parts };                                                                                    \
    INLINE floats name(const weight_t *w, const uint8_t *at, int part, float s, float o) {                            \
        (void)w;                                                                                                      \
        (void)part;                                                                                                   \
        return values * s + o;                                                                                        \
    }

#define NIBBLES (part ? widened(at) >> 4 : widened(at) & 15)
/* A float8 (e4m3) as a float16 above: 2^120. */
#define EIGHTS ((floats)((widened(at) & 0x80) << 24 | (widened(at) & 0x7f) << 20) * 0x1p120f)

FORM(int4, 2, __builtin_convertvector(NIBBLES, floats))
FORM(int8, 1, __builtin_convertvector((widened(at) << 24) >> 24, floats))
FORM(fp8, 1, EIGHTS)
FORM(table4, 2, named(w->table, NIBBLES))

INLINE void tile(float *out, int64_t n, const float *x, const float *w, int64_t k, int rows, int batch) {
    floats found[BATCH * ROWS] = {0};
    for (int64_t i = 0; i < k; i += LANES) EACH for (int m = 0; m < batch; m++) {
        floats one = load(x + m * k + i);
        EACH for (int r = 0; r < rows; r++) found[m * ROWS + r] += one * load(w + r * k + i);
    }
    if (rows == ROWS && batch * ROWS % LANES == 0) {
        EACH for (int first = 0; first < batch * ROWS; first += LANES) {
            float all[LANES];
            store(all, sums(found + first));
            EACH for (int m = 0; m < LANES / ROWS; m++)
                memcpy(out + (first / ROWS + m) * n, all + m * ROWS, ROWS * sizeof(float));
        }
        return;
    }
    EACH for (int m = 0; m < batch; m++) EACH for (int r = 0; r < rows; r++) out[m * n + r] = sum(found[m * ROWS + r]);
}

INLINE void multiply(float *out, int64_t n, const float *x, const float *w, int64_t m, int64_t k, int rows) {
    int64_t i = 0;
    for (; i + BATCH <= m; i += BATCH) tile(out + i * n, n, x + i * k, w, k, rows, BATCH);
    for (; i + 2 <= m; i += 2) tile(out + i * n, n, x + i * k, w, k, rows, 2);
    for (; i < m; i++) tile(out + i * n, n, x + i * k, w, k, rows, 1);
}

static float *scratch(size_t count) {
    static __thread float *kept;
    static __thread size_t size;
    if (count > size) {
        free(kept);
        kept = aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64);
        size = kept ? count : 0;
    }
    return kept;
}

/* group: w's, as a constant where it is a common one. */
#define LINEAR(form)                                                                                                  \
    INLINE void form##_one(float *out, const float *x, const weight_t *w, int64_t row, int rows, int64_t group) {     \
        const int64_t groups = w->k / group, size = group / form##_parts, bytes = w->k / form##_parts;                \
        const uint8_t *at = (const uint8_t *)w->codes + row * bytes;                                                  \
        floats found[ROWS] = {0};                                                                                     \
        /* The memory is asked early: its latency is most of a step of one row. */                                    \
        for (int64_t i = 0; i < rows * bytes; i += 64) __builtin_prefetch(at + AHEAD * rows * bytes + i);             \
        for (int64_t g = 0; g < groups; g++, at += size) {                                                            \
            float s[ROWS], o[ROWS];                                                                                   \
            for (int r = 0; r < rows; r++) scaled(w, (row + r) * groups + g, s + r, o + r);                           \
            for (int part = 0; part < form##_parts; part++)                                                           \
                for (int64_t i = 0; i < size; i += LANES) {                                                           \
                    floats one = load(x + g * group + part * size + i);                                               \
                    for (int r = 0; r < rows; r++) found[r] += one * form(w, at + r * bytes + i, part, s[r], o[r]);   \
                }                                                                                                     \
        }                                                                                                             \
        for (int r = 0; r < rows; r++) out[row + r] = sum(found[r]);                                                  \
    }                                                                                                                 \
    INLINE void form##_floats(float *to, const weight_t *w, int64_t row, int64_t group) {                             \
        const int64_t groups = w->k / group, size = group / form##_parts;                                             \
        const uint8_t *at = (const uint8_t *)w->codes + row * (w->k / form##_parts);                                  \
        for (int64_t g = 0; g < groups; g++, at += size, to += group) {                                               \
            float s, o;                                                                                               \
            scaled(w, row * groups + g, &s, &o);                                                                      \
            for (int part = 0; part < form##_parts; part++)                                                           \
                for (int64_t i = 0; i < size; i += LANES) store(to + part * size + i, form(w, at + i, part, s, o));   \
        }                                                                                                             \
    }                                                                                                                 \
    INLINE int form##_rows(float *out, const float *x, int64_t m, const weight_t *w, int64_t first, int64_t last,     \
                           int64_t group) {                                                                           \
        if (m == 1) {                                                                                                 \
            int64_t row = first;                                                                                      \
            for (; row + ROWS <= last; row += ROWS) form##_one(out, x, w, row, ROWS, group);                          \
            for (; row < last; row++) form##_one(out, x, w, row, 1, group);                                           \
            return 1;                                                                                                 \
        }                                                                                                             \
        float *numbers = scratch((size_t)(ROWS * w->k));                                                              \
        if (!numbers) return 0;                                                                                       \
        for (int64_t row = first; row < last; row += ROWS) {                                                          \
            int rows = last - row < ROWS ? (int)(last - row) : ROWS;                                                  \
            for (int r = 0; r < rows; r++) form##_floats(numbers + r * w->k, w, row + r, group);                      \
            if (rows == ROWS)                                                                                         \
                multiply(out + row, w->n, x, numbers, m, w->k, ROWS);                                                 \
            else                                                                                                      \
                for (int r = 0; r < rows; r++) multiply(out + row + r, w->n, x, numbers + r * w->k, m, w->k, 1);      \
        }                                                                                                             \
        return 1;                                                                                                     \
    }                                                                                                                 \
    static void form##_part(void *given, int64_t first, int64_t last) {                                               \
        const job_t *job = given;                                                                                     \
        const weight_t *w = job->w;                                                                                   \
        int done;                                                                                                     \
        switch (w->group) {                                                                                           \
            case 32: done = form##_rows(job->out, job->x, job->m, w, first, last, 32); break;                         \
            case 128: done = form##_rows(job->out, job->x, job->m, w, first, last, 128); break;                       \
            default: done = form##_rows(job->out, job->x, job->m, w, first, last, w->group);                          \
        }                                                                                                             \
        if (!done) atomic_store(job->failed, 1);                                                                      \
    }                                                                                                                 \
    /* x [m, k] -> out [m, n]. 0: there was no memory. */                                                             \
    int linear_##form(float *out, const float *x, int64_t m, const weight_t *w, int64_t threads) {                    \
        atomic_int failed = 0;                                                                                        \
        job_t job = {out, x, m, w, &failed};                                                                          \
        shared(form##_part, &job, w->n, UNIT, threads);                                                               \
        return !atomic_load(&failed);                                                                                 \
    }

LINEAR(int4)
LINEAR(int8)
LINEAR(fp8)
LINEAR(table4)
