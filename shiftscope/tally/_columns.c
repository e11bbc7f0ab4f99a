/* Sums about a pivot of a table of columns: neurons that lie side by side.

   In single precision over short blocks, the blocks in double; where squares could under- or
   overflow, or something is not finite, in double throughout. Every element is read from memory
   once. Nothing here knows of Python or of torch. */

#include "_elements.h"

/* Four rows of up to TILE columns, added to sums in single precision. What lies `ahead` elements
   further on will be wanted next. */
WIDEST static void four_rows(const float *const row[4], int64_t ahead, int64_t width,
                             const float *pivot, float *restrict first, float *restrict second,
                             uint32_t *restrict any)
{
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES) {
        for (int k = 0; k < 4; k++)
            __builtin_prefetch(row[k] + ahead + j);
        Floats p = *(const Floats *)(pivot + j);
        Floats a = *(const Floats *)(row[0] + j) - p, b = *(const Floats *)(row[1] + j) - p;
        Floats c = *(const Floats *)(row[2] + j) - p, d = *(const Floats *)(row[3] + j) - p;
        *(Floats *)(first + j) += (a + b) + (c + d);
        *(Floats *)(second + j) += (a * a + b * b) + (c * c + d * d);
        *(Bits *)(any + j) |= ((Bits)a | (Bits)b) | ((Bits)c | (Bits)d);
    }
    for (; j < width; j++)
        for (int k = 0; k < 4; k++) {
            float d = row[k][j] - pivot[j];
            first[j] += d;
            second[j] += d * d;
            any[j] |= to_bits(d);
        }
}

WIDEST static void one_row(const float *restrict row, int64_t width, const float *restrict pivot,
                           float *restrict first, float *restrict second, uint32_t *restrict any)
{
    for (int64_t j = 0; j < width; j++) {
        float d = row[j] - pivot[j];
        first[j] += d;
        second[j] += d * d;
        any[j] |= to_bits(d);
    }
}

WIDEST static void add_block(int64_t width, const float *restrict first,
                             const float *restrict second, double *restrict to_first,
                             double *restrict to_second)
{
    for (int64_t j = 0; j < width; j++) {
        to_first[j] += (double)first[j];
        to_second[j] += (double)second[j];
    }
}

/* Whether the squares of every column were summed without loss. */
WIDEST static int is_sound(int64_t rows, int64_t width, const double *second, const uint32_t *any)
{
    double least = LEAST * (double)rows;
    int64_t doubtful = 0;
    for (int64_t j = 0; j < width; j++)
        doubtful += ((any[j] & 0x7fffffffu) != 0) & !((second[j] > least) & (second[j] < MOST));
    return !doubtful;
}

static int columns_single(const Source *x, int64_t start, int64_t rows, int64_t stride,
                          int64_t width, Sums to)
{
    float pivot[TILE], first[TILE], second[TILE], buffer[4][TILE];
    uint32_t any[TILE] = {0};
    int64_t ahead = x->dtype == FLOAT32 ? 4 * stride : 0;
    for (int64_t j = 0; j < width; j++)
        pivot[j] = (float)to.pivot[j];
    for (int64_t begin = 0; begin < rows; begin += BLOCK) {
        int64_t end = begin + BLOCK < rows ? begin + BLOCK : rows, row = begin;
        memset(first, 0, (size_t)width * sizeof *first);
        memset(second, 0, (size_t)width * sizeof *second);
        for (; row + 4 <= end; row += 4) {
            const float *four[4];
            for (int k = 0; k < 4; k++)
                four[k] = floats(x, start + (row + k) * stride, width, buffer[k]);
            four_rows(four, ahead, width, pivot, first, second, any);
        }
        for (; row < end; row++)
            one_row(floats(x, start + row * stride, width, buffer[0]), width, pivot, first,
                    second, any);
        add_block(width, first, second, to.first, to.second);
    }
    return is_sound(rows, width, to.second, any);
}

#define DEFINE_EXACT(NAME, TYPE)                                                                  \
    WIDEST static void NAME(const TYPE *restrict row, int64_t width,                              \
                            const double *restrict pivot, double *restrict first,                 \
                            double *restrict second)                                              \
    {                                                                                             \
        for (int64_t j = 0; j < width; j++) {                                                     \
            double d = (double)row[j] - pivot[j];                                                 \
            first[j] += d;                                                                        \
            second[j] += d * d;                                                                   \
        }                                                                                         \
    }

DEFINE_EXACT(exact_row_float, float)
DEFINE_EXACT(exact_row_double, double)

static void columns_double(const Source *x, int64_t start, int64_t rows, int64_t stride,
                           int64_t width, Sums to)
{
    float buffer[TILE];
    memset(to.first, 0, (size_t)width * sizeof *to.first);
    memset(to.second, 0, (size_t)width * sizeof *to.second);
    for (int64_t row = 0; row < rows; row++) {
        int64_t at = start + row * stride;
        if (x->dtype == FLOAT64)
            exact_row_double((const double *)x->data + at, width, to.pivot, to.first, to.second);
        else
            exact_row_float(floats(x, at, width, buffer), width, to.pivot, to.first, to.second);
    }
}

void columns(const Source *x, int64_t start, int64_t rows, int64_t stride, int64_t width,
                    Sums to)
{
    if (x->dtype == FLOAT64 || !columns_single(x, start, rows, stride, width, to))
        columns_double(x, start, rows, stride, width, to);
}
