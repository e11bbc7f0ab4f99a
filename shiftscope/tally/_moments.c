/* First and second moments of the columns of a dense tensor in one pass over memory, and merging.

   Differences d to a pivot near the mean are summed: in single precision over short blocks, the
   blocks in double; where squares could under- or overflow, or something is not finite, in double
   throughout. The results are those of moments.py up to rounding (about 1e-7 of a variance).
   Nothing here knows of Python or of torch.

   Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance" (1983). */

#include "_moments.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define HAVE_THREADS 1
#endif

/* One binary serves all processors: the loader takes the widest clone that the machine runs. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#pragma GCC optimize("O3", "no-math-errno", "no-trapping-math")
#define WIDEST __attribute__((target_clones("avx512f", "avx2,fma", "default")))
#else
#define WIDEST
#endif
#define INLINE static inline __attribute__((always_inline))

#define LANES 16
#define TILE 1024              /* columns whose sums stay near the processor */
#define BLOCK 32               /* additions in single precision, one after the other */
#define AHEAD 1024             /* elements of a run that are asked for before they are read */
#define SHORT 64               /* runs below this are read as columns */
#define PER_THREAD (1 << 18)   /* elements that are worth a thread of their own */
#define MAX_THREADS 64
#define LEAST 1e-28            /* a mean square below this may have lost squares to underflow */
#define MOST 1e30

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float Half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(4 * LANES), aligned(8), may_alias));

/* Sums over the rows of each column: d = x - pivot, and d^2. */
typedef struct {
    double *pivot, *first, *second;
} Sums;

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

static double element(const Source *x, int64_t i)
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

/* Sums over rows of up to TILE neighbouring columns; first and second are zero on entry. */
static void columns(const Source *x, int64_t start, int64_t rows, int64_t stride, int64_t width,
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

/* -- sums of a tensor ------------------------------------------------------------------------------ */

/* A number near the first elements of a column, exactly theirs where they are equal. */
static double pivot_of(const Source *x, int64_t start, int64_t step, int64_t number)
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

/* The same of up to TILE neighbouring columns. */
static void pivots(const Source *x, int64_t start, int64_t stride, int64_t width, double *to)
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

static Sums part_of(Sums sums, int64_t column)
{
    return (Sums){sums.pivot + column, sums.first + column, sums.second + column};
}

/* Sums of all columns over the runs of rows [begin, end), four rows at a time where they can be. */
static void sums_of_runs(const Source *x, int64_t begin, int64_t end, Sums to)
{
    int64_t stride = x->width * x->run;
    for (int64_t row = begin; row < end;) {
        int64_t rows = x->dtype == FLOAT32 && row + 4 <= end ? 4 : 1;
        for (int64_t c = 0; c < x->width; c++) {
            int64_t start = row * stride + c * x->run;
            double *first = to.first + c, *second = to.second + c, s = *first, q = *second;
            if (rows == 4) {
                const float *data = (const float *)x->data + start;
                if (four_runs(data, stride, x->run, (float)to.pivot[c], first, second))
                    continue;
                *first = s;
                *second = q;
            }
            for (int64_t k = 0; k < rows; k++)
                run(x, start + k * stride, x->run, to.pivot[c], first, second);
        }
        row += rows;
    }
}

/* Sums of all columns over rows [begin, end). */
static void sums_over_rows(const Source *x, int64_t begin, int64_t end, Sums to)
{
    if (x->run > 1) {
        sums_of_runs(x, begin, end, to);
        return;
    }
    for (int64_t left = 0; left < x->width; left += TILE) {
        int64_t width = x->width - left < TILE ? x->width - left : TILE;
        columns(x, begin * x->width + left, end - begin, x->width, width, part_of(to, left));
    }
}

/* Sums of columns [left, right) over all rows, by way of each place of their runs; the means of
   the places go to `image` [width, run] unless that is NULL. */
static void sums_over_places(const Source *x, int64_t left, int64_t right, Sums to, double *image)
{
    double pivot[TILE], first[TILE], second[TILE], rows = (double)x->rows;
    Sums tile = {pivot, first, second};
    int64_t stride = x->width * x->run, end = right * x->run;
    for (int64_t start = left * x->run; start < end; start += TILE) {
        int64_t width = end - start < TILE ? end - start : TILE;
        memset(first, 0, sizeof first);
        memset(second, 0, sizeof second);
        pivots(x, start, stride, width, pivot);
        columns(x, start, x->rows, stride, width, tile);
        int64_t c = start / x->run, next = (c + 1) * x->run - start;
        for (int64_t j = 0; j < width; j++) {
            if (j == next) {
                c++;
                next += x->run;
            }
            double shift = pivot[j] - to.pivot[c];
            to.first[c] += first[j] + rows * shift;
            to.second[c] += second[j] + shift * (2.0 * first[j] + rows * shift);
        }
        for (int64_t j = 0; image && j < width; j++)
            image[start + j] = pivot[j] + first[j] / rows;
    }
}

/* -- what the sums become ------------------------------------------------------------------------ */

/* One column again, without its elements that are not finite. */
static void finite_only(const Source *x, int64_t c, Moments to)
{
    double pivot = 0.0, first = 0.0, second = 0.0;
    int64_t count = 0;
    for (int64_t row = 0; row < x->rows; row++)
        for (int64_t i = 0; i < x->run; i++) {
            double v = element(x, (row * x->width + c) * x->run + i);
            if (!isfinite(v))
                continue;
            if (count++ == 0)
                pivot = v;
            first += v - pivot;
            second += (v - pivot) * (v - pivot);
        }
    double m2 = count ? second - first * first / (double)count : 0.0;
    to.count[c] = (double)count;
    to.mean[c] = count ? pivot + first / (double)count : NAN;
    to.m2[c] = m2 > 0.0 ? m2 : 0.0;
}

/* Number of columns whose moments are not finite. */
WIDEST static int64_t all_rows(double rows, int64_t width, Sums sums, Moments to)
{
    const double *pivot = sums.pivot, *first = sums.first, *second = sums.second;
    double *restrict count = to.count, *restrict mean = to.mean, *restrict m2 = to.m2;
    double each = 1.0 / rows;
    int64_t bad = 0;
    for (int64_t c = 0; c < width; c++) {
        double square = second[c] - first[c] * first[c] * each;
        count[c] = rows;
        mean[c] = pivot[c] + first[c] * each;
        m2[c] = square > 0.0 ? square : 0.0;
        bad += !((fabs(mean[c]) <= DBL_MAX) & (fabs(square) <= DBL_MAX));
        m2[c] = square == square ? m2[c] : square;
    }
    return bad;
}

static void finish(const Source *x, Sums sums, Moments to)
{
    if (!all_rows((double)(x->rows * x->run), x->width, sums, to))
        return;
    for (int64_t c = 0; c < x->width; c++)
        if (!isfinite(to.mean[c]) || !isfinite(to.m2[c]))
            finite_only(x, c, to);
}

/* -- threads ------------------------------------------------------------------------------------- */

typedef struct {
    const Source *source;
    int64_t begin, end;
    Sums sums;
    double *image;
    int by_place;
} Share;

static void *work(void *given)
{
    Share *share = given;
    if (share->by_place)
        sums_over_places(share->source, share->begin, share->end, share->sums, share->image);
    else
        sums_over_rows(share->source, share->begin, share->end, share->sums);
    return NULL;
}

static void run_all(Share *shares, int number)
{
#ifdef HAVE_THREADS
    pthread_t threads[MAX_THREADS];
    int started[MAX_THREADS] = {0};
    for (int i = 1; i < number; i++)
        started[i] = pthread_create(&threads[i], NULL, work, &shares[i]) == 0;
    work(&shares[0]);
    for (int i = 1; i < number; i++)
        if (started[i])
            pthread_join(threads[i], NULL);
        else
            work(&shares[i]);
#else
    for (int i = 0; i < number; i++)
        work(&shares[i]);
#endif
}

static int threads_for(const Source *x, int64_t parts, int64_t most)
{
    int64_t wanted = x->rows * x->width * x->run / PER_THREAD;
    wanted = wanted < parts ? wanted : parts;
    wanted = wanted < most ? wanted : most;
    return wanted > 1 ? (int)wanted : 1;
}

/* Rows are shared out, each thread with sums of its own; by places, columns are. */
int read_moments(const Source *x, Moments to, double *image, int64_t most)
{
    int by_place = image || (x->run > 1 && x->run < SHORT);
    int64_t parts = by_place ? x->width : x->rows, width = x->width;
    int number = threads_for(x, parts, most < MAX_THREADS ? most : MAX_THREADS), copies = by_place ? 1 : number;
    double stack[3 * TILE], *memory = stack;
    size_t needed = (size_t)width * (size_t)(1 + 2 * copies);
    if (needed > sizeof stack / sizeof *stack)
        memory = malloc(needed * sizeof *memory);
    if (!memory)
        return -1;
    memset(memory + width, 0, (needed - (size_t)width) * sizeof *memory);
    if (x->run > 1)
        for (int64_t c = 0; c < width; c++)
            memory[c] = pivot_of(x, c * x->run, 1, x->run);
    else
        for (int64_t c = 0; c < width; c += TILE)
            pivots(x, c, width, width - c < TILE ? width - c : TILE, memory + c);
    Share shares[MAX_THREADS];
    for (int i = 0; i < number; i++) {
        double *own = memory + width * (1 + (by_place ? 0 : 2 * i));
        shares[i] = (Share){x, parts * i / number, parts * (i + 1) / number,
                            {memory, own, own + width}, image, by_place};
    }
    run_all(shares, number);
    Sums all = shares[0].sums;
    for (int i = 1; i < copies; i++)
        for (int64_t c = 0; c < width; c++) {
            all.first[c] += shares[i].sums.first[c];
            all.second[c] += shares[i].sums.second[c];
        }
    finish(x, all, to);
    if (memory != stack)
        free(memory);
    return 0;
}

/* -- merging ------------------------------------------------------------------------------------- */

WIDEST static void merge_columns(int64_t n, double *restrict count, double *restrict mean,
                                 double *restrict m2, const double *restrict count_b,
                                 const double *restrict mean_b, const double *restrict m2_b)
{
    for (int64_t i = 0; i < n; i++) {
        double a = count[i], b = count_b[i], both = a + b;
        double share = both > 0.0 ? b / both : 0.0;
        double other = b > 0.0 ? mean_b[i] : mean[i];
        double own = a > 0.0 ? mean[i] : other;
        double step = other - own;
        count[i] = both;
        mean[i] = both > 0.0 ? own + step * share : mean[i];
        m2[i] += both > 0.0 ? m2_b[i] + step * step * share * a : 0.0;
    }
}

void merge_moments(int64_t columns, Moments to, Moments from)
{
    merge_columns(columns, to.count, to.mean, to.m2, from.count, from.mean, from.m2);
}
