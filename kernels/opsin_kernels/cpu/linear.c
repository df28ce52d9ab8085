/* out[m, n] = sum over k of x[m, k] * w[n, k], of a weight that may be stored as codes, which are floats in registers or
 * in the cache only.
 *
 * Each output is one sum in one order (LANES partial sums along k, added up as a tree), however many rows x has and
 * whichever thread has it: so a row's result does not depend on its neighbours, to the bit. Layouts are those of
 * opsin_kernels.int4_linear, int8_linear, fp8_linear and table4_linear.
 */
#include "linear.h"

#include <stdatomic.h>

#include "pool.h"
#include "vectors.h"

#define UNIT 64     /* rows of the weight that a thread has at least */
#define FEW 8       /* rows of x for which codes are turned into numbers once more rather than kept */
#define MANY 256    /* rows of x at a time, of which a copy is kept: those of a large picture are many times as many */
#define BLOCK 32768 /* bytes of the weight's numbers that are kept, which a cache holds beside a panel of x */
#define GROUPS 16   /* whose scales are read at a time */
#define AHEAD 4     /* rows of the weight are asked for so many turns early: latency is most of a step of one row */

typedef struct {
    float *out;
    const float *x;
    int64_t m;
    const weight_t *w;
    atomic_int *failed;
} job_t;

/* Of a group: what codes are multiplied with and what is added, or what each of 16 codes means. */
typedef struct {
    floats scale, offset;
} range_t;

/* A float16 has five bits of exponent: the number is that of a float32 of the same bits, times 2^112. */
static inline float of_half(uint16_t half) {
    const uint32_t bits = (uint32_t)(half & 0x8000) << 16 | (uint32_t)(half & 0x7fff) << 13;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found * 0x1p112f;
}

/* Up to GROUPS scales or offsets as float32; none are zeros. */
INLINE void read_numbers(float *to, const void *numbers, int64_t first, int64_t count, int64_t half) {
    if (!numbers) {
        memset(to, 0, sizeof(float) * GROUPS);
        return;
    }
    const uint16_t *halves = (const uint16_t *)numbers + first;
    const float *wide = (const float *)numbers + first;
#if defined(__AVX512F__)
    if (count == GROUPS) {
        _mm512_storeu_ps(to, half ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves)) : _mm512_loadu_ps(wide));
        return;
    }
#endif
    for (int64_t i = 0; i < count; i++) to[i] = half ? of_half(halves[i]) : wide[i];
}

typedef struct {
    float scale[SUMS][GROUPS], offset[SUMS][GROUPS];
} read_t;

INLINE void read_ranges(read_t *to, const weight_t *w, int64_t row, int64_t rows, int64_t first, int64_t count,
                        int64_t groups) {
    for (int r = 0; r < rows; r++) {
        read_numbers(to->scale[r], w->scale, (row + r) * groups + first, count, w->half);
        read_numbers(to->offset[r], w->offset, (row + r) * groups + first, count, w->half);
    }
}

INLINE int parts_of(int form) { return form == INT4 || form == TABLE4 ? 2 : 1; }

INLINE int is_scaled(int form) { return form <= TABLE4; }

/* Bytes of so many inputs. */
INLINE int64_t size_of(int form, int64_t inputs) {
    return form == FLOAT32 ? 4 * inputs : is_scaled(form) ? inputs / parts_of(form) : 2 * inputs;
}

INLINE floats named(floats table, ints codes) {
#if defined(__AVX512F__)
    return (floats)_mm512_permutexvar_ps((__m512i)codes, (__m512)table); /* (of a code the low four bits count) */
#else
    (void)table;
    return __builtin_convertvector(codes, floats);
#endif
}

/* Where 16 numbers are one vector, codes of four bits name what they mean: the table is made once a group. */
INLINE range_t range_of(int form, const weight_t *w, float scale, float offset) {
    range_t found = {every(scale), every(offset)};
#if defined(__AVX512F__)
    const floats codes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (form == INT4) found.scale = codes * found.scale + found.offset;
    if (form == TABLE4) found.scale = load(w->table) * found.scale + found.offset;
#endif
    (void)form, (void)w;
    return found;
}

/* LANES numbers of 16 bits. */
INLINE floats half_numbers(int form, const uint16_t *at) {
#if defined(__AVX512F__)
    const __m256i halves = _mm256_loadu_si256((const __m256i *)at);
    if (form == FLOAT16) return (floats)_mm512_cvtph_ps(halves);
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#elif defined(__AVX2__)
    const __m128i halves = _mm_loadu_si128((const __m128i *)at);
    if (form == FLOAT16) return (floats)_mm256_cvtph_ps(halves);
    return (floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
#else
    floats found;
    for (int i = 0; i < LANES; i++) {
        uint32_t bits = (uint32_t)at[i] << 16;
        float number;
        memcpy(&number, &bits, sizeof number);
        found[i] = form == FLOAT16 ? of_half(at[i]) : number;
    }
    return found;
#endif
}

/* LANES inputs of a group, from those bytes on. Two codes of four bits share a byte, half a group apart: such a group has
 * two parts, in the low and in the high bits of the same bytes. */
INLINE floats numbers_at(int form, const weight_t *w, const uint8_t *at, int part, range_t of) {
    if (form == FLOAT32) return load((const float *)at);
    if (!is_scaled(form)) return half_numbers(form, (const uint16_t *)at);
    ints codes = widened(at);
    floats numbers;
    if (form == INT8) numbers = __builtin_convertvector((codes << 24) >> 24, floats);
    if (form == FP8) /* a float8 (e4m3) as a float16 above: 2^120 */
        numbers = (floats)((codes & 0x80) << 24 | (codes & 0x7f) << 20) * 0x1p120f;
    if (form == INT4 || form == TABLE4) {
#if defined(__AVX512F__)
        return named(of.scale, part ? codes >> 4 : codes);
#endif
        codes = part ? codes >> 4 : codes & 15;
        if (form == TABLE4)
            for (int i = 0; i < LANES; i++) numbers[i] = w->table[codes[i]];
        else
            numbers = __builtin_convertvector(codes, floats);
    }
    return numbers * of.scale + of.offset;
}

/* The sums of a tile: found[b * rows + r] -> out[b][row + r], of which only those that exist are written. */
INLINE void write_sums(float *out, int64_t n, const floats *found, int rows, int batch, int64_t real_rows,
                       int64_t real_batch) {
    for (int first = 0; first < rows * batch; first += LANES) {
        float all[LANES];
        if (rows * batch % LANES == 0)
            store(all, sums(found + first));
        else
            for (int i = 0; i < LANES && first + i < rows * batch; i++) all[i] = sum(found[first + i]);
        if (real_rows == rows && real_batch == batch) {
            for (int i = 0; i < LANES && first + i < rows * batch; i += rows)
                memcpy(out + (first + i) / rows * n, all + i, sizeof(float) * (size_t)rows);
            continue;
        }
        for (int i = 0; i < LANES && first + i < rows * batch; i++) {
            int b = (first + i) / rows, r = (first + i) % rows;
            if (b < real_batch && r < real_rows) out[b * n + r] = all[i];
        }
    }
}

/* A tile of the product: a panel of `batch` rows of x, of which m are there, times `rows` of the weight, from `row` on
 * (where fewer are left, the last one is taken several times). ahead: whether it asks for later rows. */
INLINE void tile(int form, float *out, const float *x, int64_t m, const weight_t *w, int64_t row, int64_t last, int rows,
                 int batch, int64_t group, int ahead) {
    const int64_t groups = w->k / group, size = size_of(form, group), part_inputs = group / parts_of(form);
    const int64_t bytes = size_of(form, w->k), left = last - row < rows ? last - row : rows;
    const uint8_t *at[SUMS];
    floats found[SUMS] = {0};
    EACH for (int r = 0; r < rows; r++) at[r] = (const uint8_t *)w->codes + (row + (r < left ? r : left - 1)) * bytes;
    if (ahead)
        for (int64_t i = 0; i < rows * bytes; i += 64) __builtin_prefetch(at[0] + AHEAD * rows * bytes + i);
    for (int64_t first = 0; first < groups; first += GROUPS) {
        const int64_t count = groups - first < GROUPS ? groups - first : GROUPS;
        read_t read;
        if (is_scaled(form)) read_ranges(&read, w, row, left, first, count, groups);
        for (int64_t g = 0; g < count; g++) {
            range_t ranges[SUMS];
            EACH for (int r = 0; r < rows; r++) {
                int from = r < left ? r : (int)left - 1;
                ranges[r] = !is_scaled(form) ? (range_t){0} : range_of(form, w, read.scale[from][g], read.offset[from][g]);
            }
            EACH for (int part = 0; part < parts_of(form); part++)
                for (int64_t i = 0; i < part_inputs; i += LANES) {
                    const int64_t input = (first + g) * group + part * part_inputs + i;
                    const int64_t byte = (first + g) * size + size_of(form, i * parts_of(form));
                    floats numbers[SUMS];
                    EACH for (int r = 0; r < rows; r++) numbers[r] = numbers_at(form, w, at[r] + byte, part, ranges[r]);
                    EACH for (int b = 0; b < batch; b++) {
                        floats one = load(x + input * batch + b * LANES);
                        EACH for (int r = 0; r < rows; r++) found[b * rows + r] += one * numbers[r];
                    }
                }
        }
    }
    write_sums(out + row, w->n, found, rows, batch, left, m < batch ? m : batch);
}

/* All panels of x, times rows `first` to `last` of the weight. */
INLINE void tiles(int form, float *out, const float *x, int64_t m, const weight_t *w, int64_t first, int64_t last,
                  int batch, int64_t group) {
    const int most = 4 * parts_of(form), rows = SUMS / batch < most ? SUMS / batch : most;
    for (int64_t row = first; row < last; row += rows)
        for (int64_t i = 0; i < m; i += batch)
            tile(form, out + i * w->n, x + i * w->k, m - i, w, row, last, rows, batch, group, i == 0);
}

/* Rows of x that are multiplied at a time. */
static inline int panel_rows(int form, int64_t m) {
    return m <= 2 ? (int)m : m <= 4 || m > FEW || form == FLOAT32 || SUMS < 8 ? 4 : 8;
}

INLINE void few(int form, float *out, const float *x, int64_t m, const weight_t *w, int64_t first, int64_t last,
                int64_t group) {
    switch (panel_rows(form, m)) {
        case 1: tiles(form, out, x, m, w, first, last, 1, group); break;
        case 2: tiles(form, out, x, m, w, first, last, 2, group); break;
        case 4: tiles(form, out, x, m, w, first, last, 4, group); break;
        default: tiles(form, out, x, m, w, first, last, 8, group);
    }
}

/* Memory that a thread keeps from call to call. */
typedef struct {
    float *numbers;
    size_t count;
} kept_t;
static __thread kept_t kept_rows, kept_weight;

static float *scratch(kept_t *kept, size_t count) {
    if (count > kept->count) {
        free(kept->numbers);
        kept->numbers = aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64);
        kept->count = kept->numbers ? count : 0;
    }
    return kept->numbers;
}

/* Rows `row` to `last` of the weight as floats, of which `rows` at a time. */
INLINE void numbers_of(int form, float *to, const weight_t *w, int64_t row, int64_t last, int rows, int64_t group) {
    const int64_t groups = w->k / group, size = size_of(form, group), part_inputs = group / parts_of(form);
    const int64_t bytes = size_of(form, w->k);
    for (; row + rows <= last; row += rows, to += rows * w->k) {
        const uint8_t *at = (const uint8_t *)w->codes + row * bytes;
        for (int64_t i = 0; i < rows * bytes; i += 64) __builtin_prefetch(at + AHEAD * rows * bytes + i);
        for (int64_t first = 0; first < groups; first += GROUPS) {
            const int64_t count = groups - first < GROUPS ? groups - first : GROUPS;
            read_t read;
            if (is_scaled(form)) read_ranges(&read, w, row, rows, first, count, groups);
            for (int64_t g = 0; g < count; g++) EACH for (int r = 0; r < rows; r++) {
                range_t of = !is_scaled(form) ? (range_t){0} : range_of(form, w, read.scale[r][g], read.offset[r][g]);
                const uint8_t *from = at + r * bytes + (first + g) * size;
                float *numbers = to + r * w->k + (first + g) * group;
                for (int64_t i = 0; i < part_inputs; i += LANES) {
                    const uint8_t *codes = from + size_of(form, i * parts_of(form));
                    EACH for (int part = 0; part < parts_of(form); part++)
                        store(numbers + part * part_inputs + i, numbers_at(form, w, codes, part, of));
                }
            }
        }
    }
}

/* Rows of the weight that a cache holds as floats. */
INLINE int64_t block_rows(const weight_t *w) {
    int64_t rows = BLOCK / (4 * w->k) / 4 * 4;
    return rows < 4 ? 4 : rows > UNIT ? UNIT : rows;
}

INLINE int many(int form, float *out, const float *x, int64_t m, const weight_t *w, int64_t first, int64_t last,
                int64_t group) {
    const int64_t block = block_rows(w);
    float *kept = form == FLOAT32 ? 0 : scratch(&kept_weight, (size_t)(block * w->k));
    if (form != FLOAT32 && !kept) return 0;
    for (int64_t row = first; row < last; row += block) {
        const int64_t end = last - row < block ? last : row + block;
        const weight_t numbers = {.codes = kept ? kept : (const float *)w->codes + row * w->k, .n = w->n, .k = w->k};
        if (form != FLOAT32) {
            const int64_t whole = (end - row) / 4 * 4;
            numbers_of(form, kept, w, row, row + whole, 4, group);
            numbers_of(form, kept + whole * w->k, w, row + whole, end, 1, group);
        }
        for (int64_t i = 0; i < m; i += 4)
            for (int64_t r = 0; r < end - row; r += SUMS / 4)
                tile(FLOAT32, out + i * w->n + row, x + i * w->k, m - i, &numbers, r, end - row, SUMS / 4, 4, w->k,
                     form == FLOAT32 && i == 0);
    }
    return 1;
}

INLINE int some_rows(int form, const job_t *job, int64_t first, int64_t last, int64_t group) {
    if (job->m > (form == FLOAT32 ? 2 : FEW)) return many(form, job->out, job->x, job->m, job->w, first, last, group);
    few(form, job->out, job->x, job->m, job->w, first, last, group);
    return 1;
}

/* With the commonest groups as constants. */
INLINE void part_of(int form, void *given, int64_t first, int64_t last) {
    const job_t *job = given;
    int done;
    if ((form == INT4 || form == INT8) && job->w->group == 32)
        done = some_rows(form, job, first, last, 32);
    else if (form == INT4 && job->w->group == 128)
        done = some_rows(form, job, first, last, 128);
    else
        done = some_rows(form, job, first, last, is_scaled(form) ? job->w->group : job->w->k);
    if (!done) atomic_store(job->failed, 1);
}

static void int4_part(void *job, int64_t first, int64_t last) { part_of(INT4, job, first, last); }
static void int8_part(void *job, int64_t first, int64_t last) { part_of(INT8, job, first, last); }
static void fp8_part(void *job, int64_t first, int64_t last) { part_of(FP8, job, first, last); }
static void table4_part(void *job, int64_t first, int64_t last) { part_of(TABLE4, job, first, last); }
static void dense_part(void *job, int64_t first, int64_t last) { part_of(FLOAT32, job, first, last); }
static void bfloat16_part(void *job, int64_t first, int64_t last) { part_of(BFLOAT16, job, first, last); }
static void float16_part(void *job, int64_t first, int64_t last) { part_of(FLOAT16, job, first, last); }

/* x by panels of rows, in which vectors of the same inputs stand side by side: so a tile reads on and on. NULL: there was
 * no memory. */
static const float *in_panels(const float *x, int64_t m, const weight_t *w) {
    const int64_t k = w->k, rows = panel_rows((int)w->form, m), panels = (m + rows - 1) / rows;
    if (rows == 1) return x;
    float *to = scratch(&kept_rows, (size_t)(panels * rows * k));
    if (!to) return 0;
    for (int64_t first = 0; first < m; first += rows)
        for (int64_t i = 0; i < k; i += LANES)
            for (int64_t b = 0; b < rows; b++, to += LANES)
                store(to, load(x + (first + b < m ? first + b : m - 1) * k + i));
    return kept_rows.numbers;
}

int linear(float *out, const float *x, int64_t m, const weight_t *w, int64_t threads) {
    static part_t *const forms[] = {int4_part, int8_part, fp8_part, table4_part,
                                    dense_part, bfloat16_part, float16_part};
    atomic_int failed = 0;
    for (int64_t first = 0; first < m && !atomic_load(&failed); first += MANY) {
        const int64_t rows = m - first < MANY ? m - first : MANY;
        const float *panels = in_panels(x + first * w->k, rows, w);
        if (!panels) return 0;
        job_t job = {out + first * w->n, panels, rows, w, &failed};
        shared(forms[w->form], &job, w->n, UNIT, threads);
    }
    return !atomic_load(&failed);
}
