/* Vectors as wide as the processor has them, by GCC's extension. */
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

/* LANES: numbers of a vector. SUMS: vectors that are added to at a time, as many as have room in registers beside what is
 * multiplied. */
#if defined(__AVX512F__)
#define LANES 16
#define SUMS 16
#elif defined(__AVX2__)
#define LANES 8
#define SUMS 8
#else
#define LANES 4
#define SUMS 4
#endif

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

/* A loop that is written out, so that what it works on can stay in registers. */
#define EACH _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

/* A vector of constants: what a macro makes of each lane's number. */
#define FOUR(each, a, b, i) each(a, b, i), each(a, b, i + 1), each(a, b, i + 2), each(a, b, i + 3)
#if LANES == 16
#define EACH_LANE(each, a, b) ((ints){FOUR(each, a, b, 0), FOUR(each, a, b, 4), FOUR(each, a, b, 8), FOUR(each, a, b, 12)})
#elif LANES == 8
#define EACH_LANE(each, a, b) ((ints){FOUR(each, a, b, 0), FOUR(each, a, b, 4)})
#else
#define EACH_LANE(each, a, b) ((ints){FOUR(each, a, b, 0)})
#endif

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

/* Where lane i finds its number in two vectors side by side, of which each second `width` lanes are taken from `from` on. */
#define HALF_OF(width, from, i) ((i) / (2 * (width)) * 2 * (width) + (i) % (width) + (from) + (i) / (width) % 2 * LANES)
#define HALVES_OF(width) {EACH_LANE(HALF_OF, width, 0), EACH_LANE(HALF_OF, width, width)}

/* Of LANES vectors, the sum of each in its own lane; each is added up in the order of `sum`. Halves of two vectors are
 * added side by side, then quarters of the two that came of four, and so on. */
INLINE floats sums(const floats *given) {
    static const ints halves[][2] = {HALVES_OF(1), HALVES_OF(2),
#if LANES > 4
                                     HALVES_OF(4),
#endif
#if LANES > 8
                                     HALVES_OF(8),
#endif
    };
    const ints(*places)[2] = halves + sizeof halves / sizeof *halves;
    __asm__ volatile("" : "+r"(places)); /* else they are kept in registers all along, which tiles need */
    floats vectors[LANES];               /* (those that are given stay in registers while they are made) */
    EACH for (int i = 0; i < LANES; i++) vectors[i] = given[i];
    EACH for (int width = LANES / 2; width; width /= 2) {
        places--;
        EACH for (int i = 0; i < width; i++)
            vectors[i] = __builtin_shuffle(vectors[i], vectors[i + width], (*places)[0]) +
                         __builtin_shuffle(vectors[i], vectors[i + width], (*places)[1]);
    }
    return vectors[0];
}

INLINE floats every(float number) { return number - (floats){0}; }

/* The larger of two numbers; the second where one is no number. */
INLINE floats larger(floats a, floats b) {
#if defined(__AVX512F__)
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    ints more = a > b;
    return (floats)(((ints)a & more) | ((ints)b & ~more));
#endif
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

/* e^x of numbers up to 0, within 2 units of the last place: 2^n times a polynomial of what is left. */
INLINE floats exponential(floats x) {
    floats least = (floats){0} - 87.0f;
    ints below = x < least;
    x = (floats)(((ints)x & ~below) | ((ints)least & below));
    ints n = __builtin_convertvector(x * 1.44269504f - 0.5f, ints);
    floats whole = __builtin_convertvector(n, floats);
    floats r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    floats p = ((((r * 1.9875691500e-4f + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
                1.6666665459e-1f) * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * (floats)((n + 127) << 23);
}

/* A vector of doubles, and as many numbers of half a vector. Sums in double are of CHAINS parts, and those are added up in
 * the same order, however wide a vector is. */
#define PAIRS (LANES / 2)
#define CHAINS 16
typedef double doubles __attribute__((vector_size(8 * PAIRS)));
typedef float half_floats __attribute__((vector_size(4 * PAIRS)));
typedef int32_t half_ints __attribute__((vector_size(4 * PAIRS)));

INLINE double total(const doubles *sums) {
    double parts[CHAINS];
    memcpy(parts, sums, sizeof parts);
    for (int width = CHAINS / 2; width; width /= 2)
        for (int i = 0; i < width; i++) parts[i] += parts[i + width];
    return parts[0];
}
