/* Work shared among threads that wait for it. */
#pragma once

#include <stdint.h>

/* A part of something: numbers `first` to `last`. */
typedef void part_t(void *what, int64_t first, int64_t last);

/* Does numbers 0 to `count`, by at most `threads` threads, each a run of whole `unit`s. Two calls at the same time are
 * right; the second is then done by its own thread alone. */
void shared(part_t *part, void *what, int64_t count, int64_t unit, int64_t threads);
