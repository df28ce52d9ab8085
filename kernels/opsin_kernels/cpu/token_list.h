/* Tokens of which one is drawn, and what top-k and top-p leave of them. */
#pragma once

#include <stdint.h>

#define BLOCK 256 /* what is worked on at a time, and what a list is filled up to */
#define LEAST_WEIGHT 0x1p-126f /* float32 has all digits of weights from here on; what is less weighs nothing */

/* In the vocabulary's order, with weights from LEAST_WEIGHT to 1, none below `least`, and zeros behind them. */
typedef struct {
    float *weights; /* [whole blocks] */
    int32_t *tokens;
    int64_t count;
    float least;
    float *between; /* [whole blocks], scratch */
} list_t;

/* What `count` weights weigh together, behind which are zeros up to the end of a block. */
double mass_of(const float *weights, int64_t count);

/* Writes the zeros. */
void close_list(list_t *list);

/* What at least `count` of some weights reach, as near to the last of them as it goes; LEAST_WEIGHT where fewer weigh
 * anything. between: as in a list. */
float bound_of_largest(float *weights, int64_t size, int64_t count, float *between);

/* Each keeps one token at least, and of equal ones the first. Of `least` and more; the `count` heaviest; the smallest set
 * that weighs `mass`. */
void keep_from(list_t *list, float least);
void keep_largest(list_t *list, int64_t count);
void keep_nucleus(list_t *list, double mass);
