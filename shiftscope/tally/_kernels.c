/* Sums about a pivot, of tables of columns and of runs: what _moments.c is made of.

   In single precision over short blocks, the blocks in double; where squares could under- or
   overflow, or something is not finite, in double throughout. Every element is read from memory
   once. Nothing here knows of Python or of torch. */

#include "_kernels.h"

#include <string.h>

#define LANES 16
#define BLOCK 32               /* additions in single precision, one after the other */
#define AHEAD 1024             /* elements of a run that are asked for before they are read */
#define LEAST 1e-28            /* a mean square below this may have lost squares to underflow */
#define MOST 1e30

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float Half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(4 * LANES), aligned(8), may_alias));

/* -- reading ------------------------------------------------------------------------------------ */

INLINE float of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE uint32_t to_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float from_bfloat16(uint16_t x) { return of_bits((uint32_t)x << 16); }

INLINE float from_float16(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, size = (uint32_t)(x & 0x7fffu) << 13;
    float scaled = of_bits(size) * 0x1p112f; /* subnormal numbers come out right */
    uint32_t special = size | 0x7f800000u;
    return of_bits(sign | ((x & 0x7c00u) == 0x7c00u ? special : to_bits(scaled)));
}

double element(const Source *x, int64_t i)
{
    switch (x->dtype) {
    case FLOAT32: return (double)((const float *)x->data)[i];
    case FLOAT64: return ((const double *)x->data)[i];
    case BFLOAT16: return (double)from_bfloat16(((const uint16_t *)x->data)[i]);
    default: return (double)from_float16(((const uint16_t *)x->data)[i]);
    }
}

WIDEST static void widen_bfloat16(const uint16_t *restrict x, int64_t n, float *restrict to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = from_bfloat16(x[i]);
}

WIDEST static void widen_float16(const uint16_t *restrict x, int64_t n, float *restrict to)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = from_float16(x[i]);
}

/* n neighbouring elements in single precision: where they lie, or in the buffer given. */
static const float *floats(const Source *x, int64_t start, int64_t n, float *buffer)
{
    if (x->dtype == FLOAT32)
        return (const float *)x->data + start;
    const uint16_t *halves = (const uint16_t *)x->data + start;
    if (x->dtype == BFLOAT16)
        widen_bfloat16(halves, n, buffer);
    else
        widen_float16(halves, n, buffer);
    return buffer;
}

/* -- sums of a table of columns ------------------------------------------------------------------ */

INLINE void add_floats(Floats d, Floats *first, Floats *second, Bits *any)
{
    *first += d;
    *second += d * d;
    *any |= (Bits)d;
}

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

/* -- sums of a run ------------------------------------------------------------------------------- */

WIDEST static int run_single(const float *x, int64_t n, float pivot, double *first, double *second)
{
    Bits any = {0};
    double sum = 0.0, square = 0.0;
    int64_t i = 0;
    while (i + LANES <= n) {
        Floats s[2] = {{0}}, q[2] = {{0}};
        int64_t end = i + 2 * LANES * BLOCK < n ? i + 2 * LANES * BLOCK : n;
        for (; i + 2 * LANES <= end; i += 2 * LANES) {
            __builtin_prefetch(x + i + AHEAD);
            __builtin_prefetch(x + i + AHEAD + LANES);
            add_floats(*(const Floats *)(x + i) - pivot, &s[0], &q[0], &any);
            add_floats(*(const Floats *)(x + i + LANES) - pivot, &s[1], &q[1], &any);
        }
        for (; i + LANES <= end; i += LANES)
            add_floats(*(const Floats *)(x + i) - pivot, &s[0], &q[0], &any);
        s[0] += s[1];
        q[0] += q[1];
        for (int k = 0; k < LANES; k++) {
            sum += (double)s[0][k];
            square += (double)q[0][k];
        }
    }
    uint32_t bits = 0;
    for (int k = 0; k < LANES; k++)
        bits |= any[k];
    for (; i < n; i++) {
        float d = x[i] - pivot;
        sum += (double)d;
        square += (double)d * (double)d;
        bits |= to_bits(d);
    }
    *first += sum;
    *second += square;
    return !(bits & 0x7fffffffu) || (square > LEAST * (double)n && square < MOST);
}

/* Four runs of one column at a time: as many streams keep memory busier than one. */
WIDEST static int four_runs(const float *x, int64_t stride, int64_t n, float pivot, double *first,
                            double *second)
{
    Bits any = {0};
    double sum = 0.0, square = 0.0;
    const float *row[4] = {x, x + stride, x + 2 * stride, x + 3 * stride};
    int64_t i = 0;
    while (i + LANES <= n) {
        Floats s[4] = {{0}}, q[4] = {{0}};
        int64_t end = i + LANES * BLOCK < n ? i + LANES * BLOCK : n;
        for (; i + LANES <= end; i += LANES)
            for (int k = 0; k < 4; k++) {
                __builtin_prefetch(row[k] + i + AHEAD);
                add_floats(*(const Floats *)(row[k] + i) - pivot, &s[k], &q[k], &any);
            }
        s[0] = (s[0] + s[1]) + (s[2] + s[3]);
        q[0] = (q[0] + q[1]) + (q[2] + q[3]);
        for (int k = 0; k < LANES; k++) {
            sum += (double)s[0][k];
            square += (double)q[0][k];
        }
    }
    uint32_t bits = 0;
    for (int k = 0; k < LANES; k++)
        bits |= any[k];
    for (; i < n; i++)
        for (int k = 0; k < 4; k++) {
            float d = row[k][i] - pivot;
            sum += (double)d;
            square += (double)d * (double)d;
            bits |= to_bits(d);
        }
    *first += sum;
    *second += square;
    return !(bits & 0x7fffffffu) || (square > LEAST * (double)(4 * n) && square < MOST);
}

WIDEST static void run_float(const float *x, int64_t n, double pivot, double *first, double *second)
{
    Doubles s = {0}, q = {0};
    int64_t i = 0;
    for (; i + LANES / 2 <= n; i += LANES / 2) {
        Doubles d = __builtin_convertvector(*(const Half *)(x + i), Doubles) - pivot;
        s += d;
        q += d * d;
    }
    for (; i < n; i++) {
        double d = (double)x[i] - pivot;
        s[0] += d;
        q[0] += d * d;
    }
    for (int k = 0; k < LANES / 2; k++) {
        *first += s[k];
        *second += q[k];
    }
}

WIDEST static void run_double(const double *x, int64_t n, double pivot, double *first,
                              double *second)
{
    Doubles s = {0}, q = {0};
    int64_t i = 0;
    for (; i + LANES / 2 <= n; i += LANES / 2) {
        Doubles d = *(const Doubles *)(x + i) - pivot;
        s += d;
        q += d * d;
    }
    for (; i < n; i++) {
        double d = x[i] - pivot;
        s[0] += d;
        q[0] += d * d;
    }
    for (int k = 0; k < LANES / 2; k++) {
        *first += s[k];
        *second += q[k];
    }
}

/* Add the n neighbouring elements from `start` on to the sums of one column. */
static void run(const Source *x, int64_t start, int64_t n, double pivot, double *first,
                double *second)
{
    float buffer[TILE];
    if (x->dtype == FLOAT64) {
        run_double((const double *)x->data + start, n, pivot, first, second);
        return;
    }
    int64_t piece = x->dtype == FLOAT32 ? n : TILE;
    for (int64_t i = 0; i < n; i += piece) {
        int64_t length = i + piece < n ? piece : n - i;
        const float *part = floats(x, start + i, length, buffer);
        double s = *first, q = *second;
        if (run_single(part, length, (float)pivot, first, second))
            continue;
        *first = s;
        *second = q;
        run_float(part, length, pivot, first, second);
    }
}

void runs(const Source *x, int64_t start, int64_t rows, double pivot, double *first,
          double *second)
{
    int64_t stride = x->width * x->run, k = 0;
    if (x->dtype == FLOAT32 && rows == TOGETHER) {
        double s = *first, q = *second;
        if (four_runs((const float *)x->data + start, stride, x->run, (float)pivot, first, second))
            return;
        *first = s;
        *second = q;
    }
    for (; k < rows; k++)
        run(x, start + k * stride, x->run, pivot, first, second);
}

/* -- pivots -------------------------------------------------------------------------------------- */

double pivot_of(const Source *x, int64_t start, int64_t step, int64_t number)
{
    double a = element(x, start);
    if (number >= 4) {
        double b = element(x, start + step), c = element(x, start + 2 * step);
        a = 0.25 * ((a + b) + (c + element(x, start + 3 * step)));
    }
    return x->dtype == FLOAT64 ? a : (double)(float)a;
}

WIDEST static void mean_of_four(const float *const row[4], int64_t width, double *restrict to)
{
    const float *a = row[0], *b = row[1], *c = row[2], *d = row[3];
    for (int64_t j = 0; j < width; j++)
        to[j] = (double)(0.25f * ((a[j] + b[j]) + (c[j] + d[j])));
}

void pivots(const Source *x, int64_t start, int64_t stride, int64_t width, double *to)
{
    if (x->dtype == FLOAT64 || x->rows < 4) {
        for (int64_t j = 0; j < width; j++)
            to[j] = pivot_of(x, start + j, stride, x->rows);
        return;
    }
    float buffer[4][TILE];
    const float *row[4];
    for (int k = 0; k < 4; k++)
        row[k] = floats(x, start + k * stride, width, buffer[k]);
    mean_of_four(row, width, to);
}
