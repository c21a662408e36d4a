// y = x W^T on a CPU, W in codes of 4 or 8 bits: each code is made the float32 that it stands for in a register, once for
// up to eight rows of x, and multiplied there. Compiled and called by cpu_packed_product.py, which lays W out.
//
// Outputs lie in tiles of 16, side by side: of a tile, place k has a byte for each output (8 bits) or places k and k + 1
// share one, k in its low half (4 bits). w = code * scale + offset, with a scale and an offset for each output and group.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16 };
#define WIDE(codes) ((ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(codes))))
#define WIDE_SIGNED(codes) ((ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(codes))))
#define FROM_HALVES(numbers) ((floats)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)(numbers))))
#elif defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
enum { LANES = 8 };
#define WIDE(codes) ((ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(codes))))
#define WIDE_SIGNED(codes) ((ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(codes))))
#define FROM_HALVES(numbers) ((floats)_mm256_cvtph_ps(_mm_loadu_si128((const void *)(numbers))))
#else
enum { LANES = 4 };
#define WIDE(codes) ((ints){(codes)[0], (codes)[1], (codes)[2], (codes)[3]})
#define WIDE_SIGNED(codes) ((ints){(int8_t)(codes)[0], (int8_t)(codes)[1], (int8_t)(codes)[2], (int8_t)(codes)[3]})
#define FROM_HALVES(numbers) ((floats){from_half((numbers)[0]), from_half((numbers)[1]), from_half((numbers)[2]), \
                                       from_half((numbers)[3])})
#endif
enum { TILE = 16, STEP = 4, MOST_ROWS = 8 };  // STEP: places that are multiplied at a time

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS floats load(const float *from) {
    floats found;
    memcpy(&found, from, sizeof found);
    return found;
}

// A finite one. Its exponent's bias is 112 less than that of a float.
ALWAYS float from_half(uint16_t number) {
    uint32_t bits = (uint32_t)(number & 0x7FFF) << 13;
    float found;
    memcpy(&found, &bits, sizeof found);
    return (number >> 15 ? -0x1p112f : 0x1p112f) * found;
}

// LANES of them from the place `at`, where each has 2 or 4 bytes.
ALWAYS floats load_numbers(const void *from, long at, int bytes) {
    return bytes == 2 ? FROM_HALVES((const uint16_t *)from + at) : load((const float *)from + at);
}

ALWAYS void decode(int bits, const uint8_t *codes, floats scale, floats offset, floats w[STEP]) {
    if (bits == 4) {
        ints first = WIDE(codes), second = WIDE(codes + TILE);
        w[0] = __builtin_convertvector(first & 15, floats) * scale + offset;
        w[1] = __builtin_convertvector(first >> 4, floats) * scale + offset;
        w[2] = __builtin_convertvector(second & 15, floats) * scale + offset;
        w[3] = __builtin_convertvector(second >> 4, floats) * scale + offset;
    } else {
        for (int i = 0; i < STEP; i++)
            w[i] = __builtin_convertvector(WIDE_SIGNED(codes + i * TILE), floats) * scale + offset;
    }
}

// x: [size, rows]. One row has four sums, of every fourth place, so that additions do not wait for each other.
ALWAYS void tile(int rows, int bits, const float *x, const uint8_t *codes, const void *scales, const void *offsets,
                 int bytes, long size, long group, float *out, long outputs, long left, long width) {
    for (int half = 0; half < TILE; half += LANES) {
        floats sums[MOST_ROWS * STEP] = {0};
        int chains = rows == 1 ? STEP : rows <= 4 ? 2 : 1;
        for (long first = 0, g = 0; first < size; first += group, g++) {
            floats scale = load_numbers(scales, g * TILE + half, bytes);
            floats offset = load_numbers(offsets, g * TILE + half, bytes);
            long end = first + group < size ? first + group : size;
            for (long k = first; k < end; k += STEP) {
                floats w[STEP];
                decode(bits, codes + k * bits / 8 * TILE + half, scale, offset, w);
#pragma GCC unroll 4
                for (int i = 0; i < STEP; i++)
#pragma GCC unroll 8
                    for (int r = 0; r < rows; r++)
                        sums[r * chains + i % chains] += w[i] * x[(k + i) * rows + r];
            }
        }
        long count = width - half < LANES ? width - half : LANES;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            floats sum = sums[r * chains];
            for (int i = 1; i < chains; i++) sum += sums[r * chains + i];
            if (r < left && count > 0) memcpy(out + r * outputs + half, &sum, count * sizeof(float));
        }
    }
}

#define TILE_OF(rows, bits, bytes) \
    case rows * 100 + bits * 10 + bytes: \
        tile(rows, bits, x, codes, scales, offsets, bytes, size, group, out, outputs, left, width); break;
#define TILES_OF(bits, bytes) \
    TILE_OF(1, bits, bytes) TILE_OF(2, bits, bytes) TILE_OF(4, bits, bytes) TILE_OF(8, bits, bytes)

static void tile_of(int rows, int bits, const float *x, const uint8_t *codes, const void *scales, const void *offsets,
                    int bytes, long size, long group, float *out, long outputs, long left, long width) {
    switch (rows * 100 + bits * 10 + bytes) { TILES_OF(4, 2) TILES_OF(4, 4) TILES_OF(8, 2) TILES_OF(8, 4) }
}

// Rows that are multiplied together: 1, 2, 4 or 8, the last of them zeros where fewer are left.
static int rows_of(long left) { return left > 4 ? 8 : left > 2 ? 4 : left; }

// x: float32 [rows, size]; codes: [tiles, size * bits / 8, TILE]; scales, offsets: float16 (bytes: 2) or float32 (4)
// [tiles, groups, TILE]; out: float32 [rows, outputs]. size and group are multiples of STEP. Returns 0 where memory for a
// copy of x is missing.
int packed_product(const float *x, long rows, const uint8_t *codes, const void *scales, const void *offsets, int bytes,
                   long outputs, long size, long group, int bits, float *out, int threads) {
    long num_tiles = (outputs + TILE - 1) / TILE, num_groups = (size + group - 1) / group;
    float *by_place = NULL;  // of each block of rows [size, rows_of]
    if (rows > 1) {
        by_place = calloc((rows + MOST_ROWS) * size, sizeof(float));
        if (!by_place) return 0;
        for (long r = 0; r < rows; r++) {
            long first = r / MOST_ROWS * MOST_ROWS, n = rows_of(rows - first);
            for (long k = 0; k < size; k++) by_place[first * size + k * n + r - first] = x[r * size + k];
        }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < num_tiles; t++) {
        long width = outputs - t * TILE < TILE ? outputs - t * TILE : TILE;
        long numbers = t * num_groups * TILE * bytes;
        for (long r = 0; r < rows; r += MOST_ROWS)
            tile_of(rows_of(rows - r), bits, by_place ? by_place + r * size : x, codes + t * size * bits / 8 * TILE,
                    (const char *)scales + numbers, (const char *)offsets + numbers, bytes, size, group,
                    out + r * outputs + t * TILE, outputs, rows - r, width);
    }
    free(by_place);
    return 1;
}
