/* The definition is in opsin_kernels.sampling. Every row is drawn alone, in one order: its token does not depend on its
 * neighbours.
 *
 * A weight is e^((logit - largest) / temperature), so the largest is 1. Without filters two passes over a row suffice: one
 * finds what is largest in each block, one what each block weighs; then the block in which the draw falls is gone through.
 * Filters look at a list of the tokens that may stay: top-k needs none below the k-th largest of the blocks' largest; all
 * that weigh less than (1 - top-p) / width of the whole are together too light for top-p to reach them. Blocks without any
 * of the list are passed over.
 */
#include "sampling.h"

#include <math.h>

#include "token_list.h"
#include "vectors.h"

#define COLDEST 1e-30 /* as in opsin_kernels.gpu */
#define FAINTEST -87.0f /* e^x of less is below LEAST_WEIGHT */
#define LAST_UNIFORM (1.0 - 0x1p-53)

typedef struct {
    const float *x;
    int64_t width, blocks;
    float largest, temperature;
    float *tops;    /* [whole blocks] what is largest in each block, first as a logit, then as a weight */
    double *masses; /* [blocks] */
} row_t;

/* BLOCK logits from x on; where there are fewer, a copy with -INFINITY behind them. */
static const float *whole(const float *x, int64_t count, float *copy) {
    if (count >= BLOCK) return x;
    for (int64_t i = 0; i < BLOCK; i++) copy[i] = i < count ? x[i] : -INFINITY;
    return copy;
}

/* Weights of BLOCK logits, or of `count` and zeros. What is no number weighs nothing; what is less than the largest weighs
 * less, whatever rounding would say, so that no filter puts it first. */
static void weigh(float *weights, const float *logits, int64_t count, float largest, float temperature) {
    float copy[BLOCK];
    const float *x = whole(logits, count, copy), below_one = 1.0f - 0x1p-24f;
    for (int64_t i = 0; i < BLOCK; i += LANES) {
        floats logit = load(x + i), power = (logit - largest) / temperature;
        floats weight = -larger(-exponential(power), every(-below_one));
        ints equal = logit == largest, there = power >= FAINTEST;
        store(weights + i, (floats)(((ints)every(1.0f) & equal) | ((ints)weight & there & ~equal)));
    }
}

static void weigh_block(float *weights, const row_t *row, int64_t block) {
    int64_t first = block * BLOCK;
    weigh(weights, row->x + first, row->width - first, row->largest, row->temperature);
}

/* What each of the row's blocks weighs, and all of them. */
static double weigh_blocks(const row_t *row) {
    float weights[BLOCK];
    double total = 0.0;
    for (int64_t block = 0; block < row->blocks; block++) {
        row->masses[block] = 0.0;
        if (row->tops[block] == 0.0f) continue;
        weigh_block(weights, row, block);
        row->masses[block] = mass_of(weights, BLOCK);
        total += row->masses[block];
    }
    return total;
}

/* Where the sum of weights passes `target`; the last that weighs anything, should rounding leave none. */
static int64_t passes(const float *weights, double target) {
    int64_t last = 0;
    double sum = 0.0;
    for (int64_t i = 0; i < BLOCK && sum <= target; i++)
        if (weights[i] > 0.0f) sum += weights[i], last = i;
    return last;
}

/* In which block the sum passes `target`, of which what is left in the block is told. Blocks come to more than that. */
static int64_t block_of(const double *masses, double *target) {
    double sum = 0.0;
    int64_t block = 0;
    while (sum + masses[block] <= *target) sum += masses[block++];
    *target -= sum;
    return block;
}

/* Those of `least` and more, which are looked for where a block's largest is. */
static void gather(list_t *list, const row_t *row, float least) {
    float weights[BLOCK];
    int64_t count = 0;
    for (int64_t block = 0; block < row->blocks; block++) {
        if (row->tops[block] < least) continue;
        weigh_block(weights, row, block);
        int64_t first = block * BLOCK, end = row->width - first < BLOCK ? row->width - first : BLOCK;
        for (int64_t i = 0; i < end; i++) {
            list->weights[count] = weights[i], list->tokens[count] = (int32_t)(first + i);
            count += weights[i] >= least;
        }
    }
    list->count = count, list->least = least;
    close_list(list);
}

static void fill_list(list_t *list, const row_t *row, int64_t top_k, float top_p, float min_p) {
    double mass = 0.0;
    float least = min_p;
    if (top_k)
        least = bound_of_largest(row->tops, row->blocks, top_k, list->between);
    else if (top_p < 1.0f)
        mass = weigh_blocks(row), least = (float)(0.99 * (1.0 - top_p) * mass / (double)row->width); /* (0.99: rounding) */
    gather(list, row, least > LEAST_WEIGHT ? least : LEAST_WEIGHT);
    if (top_k) keep_largest(list, top_k), mass = mass_of(list->weights, list->count);
    if (top_p < 1.0f) keep_nucleus(list, top_p * mass);
    keep_from(list, min_p);
}

static int64_t draw_of_list(const list_t *list, double *masses, double uniform) {
    double total = 0.0;
    for (int64_t i = 0; i < list->count; i += BLOCK)
        total += masses[i / BLOCK] = mass_of(list->weights + i, BLOCK);
    double target = uniform * total;
    int64_t first = block_of(masses, &target) * BLOCK;
    return list->tokens[first + passes(list->weights + first, target)];
}

static int64_t draw_plain(const row_t *row, double uniform) {
    float weights[BLOCK];
    double target = uniform * weigh_blocks(row);
    int64_t block = block_of(row->masses, &target);
    weigh_block(weights, row, block);
    return block * BLOCK + passes(weights, target);
}

/* Finds what is largest in each block and in all; -INFINITY where there is no number. Returns whether there is a NaN. */
static int find_tops(row_t *row) {
    float copy[BLOCK], parts[LANES];
    ints strange = {0};
    row->largest = -INFINITY;
    for (int64_t block = 0; block < row->blocks; block++) {
        const float *x = whole(row->x + block * BLOCK, row->width - block * BLOCK, copy);
        floats most = every(-INFINITY);
        for (int64_t i = 0; i < BLOCK; i += LANES) {
            floats here = load(x + i);
            most = larger(here, most), strange |= here != here;
        }
        store(parts, most);
        for (int width = LANES / 2; width; width /= 2)
            for (int i = 0; i < width; i++) parts[i] = parts[i] > parts[i + width] ? parts[i] : parts[i + width];
        row->tops[block] = parts[0];
        if (parts[0] > row->largest) row->largest = parts[0];
    }
    int found = 0;
    for (int i = 0; i < LANES; i++) found |= strange[i];
    return found;
}

/* Where the first of the largest is; 0 where there is no number. */
static int64_t first_largest(const row_t *row) {
    if (row->largest == -INFINITY) return 0;
    int64_t block = 0;
    while (row->tops[block] != row->largest) block++;
    int64_t at = block * BLOCK;
    while (row->x[at] != row->largest) at++;
    return at;
}

int64_t scratch_bytes(int64_t width) {
    int64_t blocks = (width + BLOCK - 1) / BLOCK, of_tops = (blocks + BLOCK - 1) / BLOCK;
    return blocks * (int64_t)sizeof(double) + (3 * blocks + of_tops) * BLOCK * (int64_t)sizeof(float);
}

/* settings: as in sampling.h, of this row; none: it is greedy. */
static int64_t draw_row(row_t *row, list_t *list, const double *settings) {
    if (!settings || settings[0] < COLDEST || !isfinite(row->largest)) return first_largest(row);
    row->temperature = (float)settings[0];
    for (int64_t i = 0; i < row->blocks; i += BLOCK)
        weigh(row->tops + i, row->tops + i, row->blocks - i, row->largest, row->temperature);
    int64_t top_k = settings[1] >= 1.0 && settings[1] < (double)row->width ? (int64_t)settings[1] : 0;
    float top_p = (float)settings[2], min_p = settings[3] < 1.0 ? (float)settings[3] : 1.0f;
    double uniform = settings[4] < LAST_UNIFORM ? settings[4] : LAST_UNIFORM;
    if (!top_k && top_p >= 1.0f && min_p <= 0.0f) return draw_plain(row, uniform);
    fill_list(list, row, top_k, top_p, min_p);
    return draw_of_list(list, row->masses, uniform);
}

void draw_rows(int64_t *tokens, float *largest, const float *logits, const double *settings, char *scratch, int64_t rows,
               int64_t width, int64_t stride) {
    row_t row = {.width = width, .blocks = (width + BLOCK - 1) / BLOCK, .masses = (double *)scratch};
    list_t list = {.weights = (float *)(row.masses + row.blocks)};
    list.tokens = (int32_t *)(list.weights + row.blocks * BLOCK);
    list.between = (float *)(list.tokens + row.blocks * BLOCK);
    row.tops = list.between + row.blocks * BLOCK;
    for (int64_t i = 0; i < rows; i++) {
        row.x = logits + i * stride;
        int strange = find_tops(&row);
        largest[i] = strange ? NAN : row.largest;
        tokens[i] = draw_row(&row, &list, settings ? settings + 5 * i : 0);
    }
}
