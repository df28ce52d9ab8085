/* Tokens, drawn from rows of logits. */
#pragma once

#include <stdint.h>

/* logits [rows, width], `stride` apart, of any width -> a token each, and each row's largest logit, which is NaN beside a
 * NaN. settings [rows, 5]: temperature, top-k, top-p, min-p, uniform; none: all rows are greedy. scratch: as many bytes as
 * `scratch_bytes` says, where a double may lie. */
void draw_rows(int64_t *tokens, float *largest, const float *logits, const double *settings, char *scratch, int64_t rows,
               int64_t width, int64_t stride);

/* For rows of `width` logits, however many. */
int64_t scratch_bytes(int64_t width);
