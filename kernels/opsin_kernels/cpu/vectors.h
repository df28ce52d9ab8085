/* Vectors as wide as the processor has them, by GCC's extension. */
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

/* LANES: numbers of a vector. BATCH: rows that are worked on at a time, as many as have room in registers. */
#if defined(__AVX512F__)
#define LANES 16
#define BATCH 4
#elif defined(__AVX2__)
#define LANES 8
#define BATCH 2
#else
#define LANES 4
#define BATCH 2
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

/* A loop that is written out, so that what it works on can stay in registers. */
#define EACH _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

INLINE floats load(const float *at) {
    floats found;
    memcpy(&found, at, sizeof found);
    return found;
}

INLINE void store(float *at, floats numbers) { memcpy(at, &numbers, sizeof numbers); }

INLINE float sum(floats numbers) {
    float parts[LANES];
    store(parts, numbers);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) parts[i] += parts[i + width];
    return parts[0];
}

/* Of LANES vectors, the sum of each in its own lane; each is added up in the order of `sum`. Halves of two vectors are
 * added side by side, then quarters of the two that came of four, and so on. */
INLINE floats sums(const floats *given) {
    floats vectors[LANES]; /* (those that are given stay in registers while they are made) */
    EACH for (int i = 0; i < LANES; i++) vectors[i] = given[i];
    EACH for (int width = LANES / 2; width; width /= 2) {
        ints low, high;
        EACH for (int i = 0; i < LANES; i++) {
            int place = i / (2 * width) * 2 * width + i % width, other = i / width % 2 * LANES;
            low[i] = place + other, high[i] = place + width + other;
        }
        EACH for (int i = 0; i < width; i++)
            vectors[i] = __builtin_shuffle(vectors[i], vectors[i + width], low) +
                         __builtin_shuffle(vectors[i], vectors[i + width], high);
    }
    return vectors[0];
}

/* LANES bytes as numbers. */
INLINE ints widened(const uint8_t *at) {
#if defined(__AVX512F__)
    return (ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)at));
#elif defined(__AVX2__)
    return (ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at));
#else
    ints found;
    for (int i = 0; i < LANES; i++) found[i] = at[i];
    return found;
#endif
}
