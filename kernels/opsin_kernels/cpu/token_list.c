/* The smallest weight that stays is found by bisection over its bits: weights are not negative, so their bits order as
 * integers do, and no sort is needed.
 */
#include "token_list.h"

#include <math.h>

#include "vectors.h"

#define ONE 0x3F800000 /* the bits of 1.0 */

typedef struct {
    int64_t count;
    double mass;
} amount_t;

static int32_t bits_of(float weight) {
    int32_t bits;
    memcpy(&bits, &weight, sizeof bits);
    return bits;
}

static float weight_of(int32_t bits) {
    float weight;
    memcpy(&weight, &bits, sizeof weight);
    return weight;
}

/* How many are at least as heavy as `bits`, and what they weigh together. */
INLINE amount_t reach(const float *weights, int64_t count, int32_t bits) {
    doubles masses[CHAINS / PAIRS] = {0};
    half_ints found = {0};
    for (int64_t i = 0; i < count; i += CHAINS)
        EACH for (int part = 0; part < CHAINS / PAIRS; part++) {
            half_ints weight;
            memcpy(&weight, weights + i + part * PAIRS, sizeof weight);
            half_ints stays = weight >= bits;
            masses[part] += __builtin_convertvector((half_floats)(weight & stays), doubles);
            found -= stays;
        }
    amount_t amount = {0, total(masses)};
    for (int i = 0; i < PAIRS; i++) amount.count += found[i];
    return amount;
}

double mass_of(const float *weights, int64_t count) { return reach(weights, count, 0).mass; }

static void fill_up(float *weights, int64_t count) {
    for (int64_t i = count; i % BLOCK; i++) weights[i] = 0.0f;
}

void close_list(list_t *list) { fill_up(list->weights, list->count); }

/* Those from `low` to below `high`, which may be written where they lie; how many they are. */
static int64_t copy_between(float *to, const float *weights, int64_t count, int32_t low, int32_t high) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t bits = bits_of(weights[i]);
        to[found] = weights[i];
        found += bits >= low && bits < high;
    }
    fill_up(to, found);
    return found;
}

/* The largest bits whose weights are `count` at least and weigh `mass` at least, or fewer where only one token lies between;
 * above: what weighs more. The whole list is so many, and so heavy. */
static int32_t bisect(const list_t *list, int64_t count, double mass, amount_t *above) {
    int32_t low = bits_of(list->least), high = ONE + 1;
    const float *left = list->weights;
    int64_t left_count = list->count, low_count = list->count;
    amount_t passed = {0, 0.0}; /* what weighs more than all that are left */
    *above = passed;
    while (low_count - above->count > 1 && high - low > 1) {
        if (2 * (low_count - above->count) < left_count) {
            left_count = copy_between(list->between, left, left_count, low, high);
            left = list->between, passed = *above;
        }
        int32_t middle = low + (high - low) / 2;
        amount_t here = reach(left, left_count, middle);
        here.count += passed.count, here.mass += passed.mass;
        if (here.count >= count && here.mass >= mass)
            low = middle, low_count = here.count;
        else
            high = middle, *above = here;
    }
    return low;
}

float bound_of_largest(float *weights, int64_t size, int64_t count, float *between) {
    if (size < count) return LEAST_WEIGHT;
    amount_t above;
    list_t list = {weights, 0, size, LEAST_WEIGHT, between};
    return weight_of(bisect(&list, count, 0.0, &above));
}

/* What weighs more than `bits` stays, and of what weighs as much the first `equals`. */
static void keep(list_t *list, int32_t bits, int64_t equals) {
    int64_t count = 0;
    for (int64_t i = 0; i < list->count; i++) {
        int32_t weight = bits_of(list->weights[i]);
        list->weights[count] = list->weights[i], list->tokens[count] = list->tokens[i];
        count += weight > bits;
        if (weight == bits && equals-- > 0) count++;
    }
    list->count = count, list->least = weight_of(bits);
    close_list(list);
}

void keep_from(list_t *list, float least) {
    if (least > list->least) keep(list, bits_of(least), list->count);
}

void keep_largest(list_t *list, int64_t count) {
    if (list->count <= count) return;
    amount_t above;
    int32_t bits = bisect(list, count, 0.0, &above);
    keep(list, bits, count - above.count);
}

void keep_nucleus(list_t *list, double mass) {
    amount_t above;
    int32_t bits = bisect(list, 1, mass, &above);
    double needed = ceil((mass - above.mass) / weight_of(bits)), most = (double)list->count;
    needed = needed < most ? needed : most;
    keep(list, bits, needed > 1.0 ? (int64_t)needed : 1);
}
