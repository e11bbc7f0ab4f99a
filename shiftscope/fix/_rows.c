/* The basis of the hyperplane of zero sums, its transpose, and the projector, row by row.

   Every row comes from memory once: it is summed, and subtracted from while it lies in the cache.
   A sum is off by eps of the sum of the sizes at most: with one more rounding, of the element that
   closes a row to zero, this keeps the bound of subspace.py, whatever was read. Nothing here knows
   of Python or of torch.

   Source: zerosum.py for the maps; Knuth, TAOCP vol. 2, 4.2.2, theorem B, for what is lost. */

#include "_rows.h"

#include "../tally/_compiled.h"

#include <math.h>

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to what is inlined, never called */
#endif

#define LANES 4
#define CHAINS 2             /* sums that do not wait for each other */
#define EIGHT (CHAINS * LANES)
#define PER_THREAD (1 << 19) /* elements that are worth a thread of their own */

typedef float Floats __attribute__((vector_size(4 * EIGHT), aligned(4), may_alias));
typedef float Half __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(8 * LANES), aligned(8), may_alias));

INLINE double across(Doubles x) { return (x[0] + x[2]) + (x[1] + x[3]); }

/* -- single precision -------------------------------------------------------------------------- */

INLINE Floats floats(const float *x) { return *(const Floats *)x; }

INLINE void add_floats(Doubles sum[CHAINS], Floats x)
{
    const Half *half = (const Half *)&x;
    for (int k = 0; k < CHAINS; k++)
        sum[k] += __builtin_convertvector(half[k], Doubles);
}

/* Fours in single precision, two additions deep: off by eps of their sizes; the rest in double. */
INLINE double sum_floats(const float *x, int64_t n)
{
    Doubles sum[CHAINS] = {{0}};
    double rest = 0.0;
    int64_t i = 0;
    for (; i + 4 * EIGHT <= n; i += 4 * EIGHT)
        add_floats(sum, (floats(x + i) + floats(x + i + EIGHT))
                            + (floats(x + i + 2 * EIGHT) + floats(x + i + 3 * EIGHT)));
    for (; i + EIGHT <= n; i += EIGHT)
        add_floats(sum, floats(x + i));
    for (; i < n; i++)
        rest += (double)x[i];
    return across(sum[0] + sum[1]) + rest;
}

INLINE Floats shifted(const float *x, float c, float *to)
{
    Floats result = floats(x) - c;
    *(Floats *)to = result;
    return result;
}

/* Write x - c, which may be in place; the sum of what was written. */
INLINE double shift_floats(const float *x, int64_t n, float c, float *to)
{
    Doubles sum[CHAINS] = {{0}};
    double rest = 0.0;
    int64_t i = 0;
    for (; i + 4 * EIGHT <= n; i += 4 * EIGHT) {
        Floats four[4];
        for (int k = 0; k < 4; k++)
            four[k] = shifted(x + i + k * EIGHT, c, to + i + k * EIGHT);
        add_floats(sum, (four[0] + four[1]) + (four[2] + four[3]));
    }
    for (; i + EIGHT <= n; i += EIGHT)
        add_floats(sum, shifted(x + i, c, to + i));
    for (; i < n; i++)
        rest += (double)(to[i] = x[i] - c);
    return across(sum[0] + sum[1]) + rest;
}

/* -- double precision, with what each addition lost -------------------------------------------- */

typedef struct {
    Doubles sum, lost;
} Sums;

INLINE void add(Sums *to, Doubles x)
{
    Doubles sum = to->sum + x, own = sum - to->sum;
    to->lost += (to->sum - (sum - own)) + (x - own);
    to->sum = sum;
}

INLINE void add_one(double *all, double *lost, double x)
{
    double sum = *all + x, own = sum - *all;
    *lost += (*all - (sum - own)) + (x - own);
    *all = sum;
}

INLINE Doubles shifted_doubles(const double *x, double c, double *to)
{
    Doubles result = *(const Doubles *)x - c;
    if (to)
        *(Doubles *)to = result;
    return result;
}

/* Write x - c, which may be in place, unless there is nowhere to; the sum of the differences. */
INLINE double shift_doubles(const double *x, int64_t n, double c, double *to)
{
    Sums part[CHAINS] = {{{0}, {0}}};
    double all = 0.0, lost = 0.0;
    int64_t i = 0;
    for (; i + EIGHT <= n; i += EIGHT)
        for (int64_t j = i, k = 0; k < CHAINS; j += LANES, k++)
            add(&part[k], shifted_doubles(x + j, c, to ? to + j : NULL));
    for (; i < n; i++) {
        double result = x[i] - c;
        if (to)
            to[i] = result;
        add_one(&all, &lost, result);
    }
    add(&part[0], part[1].sum);
    for (int k = 0; k < LANES; k++)
        add_one(&all, &lost, part[0].sum[k]);
    lost += across(part[0].lost + part[1].lost);
    return isfinite(all) ? all + lost : all; /* infinity loses infinity less infinity */
}

/* -- either ------------------------------------------------------------------------------------ */

INLINE double sum_of(const char *x, int64_t n, int dtype)
{
    if (dtype == FLOAT64)
        return shift_doubles((const double *)x, n, 0.0, NULL);
    return sum_floats((const float *)x, n);
}

INLINE double shift(const char *x, int64_t n, double c, char *to, int dtype)
{
    if (dtype == FLOAT64)
        return shift_doubles((const double *)x, n, c, (double *)to);
    return shift_floats((const float *)x, n, (float)c, (float *)to);
}

INLINE double get(const char *x, int dtype)
{
    return dtype == FLOAT64 ? *(const double *)x : (double)*(const float *)x;
}

INLINE void put(char *to, double value, int dtype)
{
    if (dtype == FLOAT64)
        *(double *)to = value;
    else
        *(float *)to = (float)value;
}

/* -- rows -------------------------------------------------------------------------------------- */

INLINE int64_t size_of(int dtype) { return dtype == FLOAT64 ? sizeof(double) : sizeof(float); }

INLINE void map_row(int map, const char *x, char *to, int64_t width, int dtype)
{
    int64_t rest = width - 1, size = size_of(dtype);
    double m = (double)width, root = sqrt(m), weight = 1.0 / (m + root);
    if (map == EMBED) {
        double t = sum_of(x, rest, dtype);
        put(to, -shift(x, rest, t * weight, to + size, dtype), dtype);
    } else if (map == COORDINATES) {
        double t = sum_of(x + size, rest, dtype) + (1.0 + root) * get(x, dtype);
        shift(x + size, rest, t * weight, to, dtype);
    } else {
        double left = shift(x, width, sum_of(x, width, dtype) / m, to, dtype);
        shift(to, width, left / m, to, dtype); /* what rounding left of a large mean */
    }
}

INLINE void map_table(const Table *t, int dtype)
{
    int64_t from = (t->width - (t->map == EMBED)) * size_of(dtype);
    int64_t to = (t->width - (t->map == COORDINATES)) * size_of(dtype);
    for (int64_t row = 0; row < t->rows; row++)
        map_row(t->map, t->from + row * from, t->to + row * to, t->width, dtype);
}

WIDEST static void map_float32(const Table *t) { map_table(t, FLOAT32); }

WIDEST static void map_float64(const Table *t) { map_table(t, FLOAT64); }

static void *work(void *given)
{
    const Table *t = given;
    if (t->dtype == FLOAT64)
        map_float64(t);
    else
        map_float32(t);
    return NULL;
}

/* -- threads ----------------------------------------------------------------------------------- */

static Table part_of(const Table *t, int64_t begin, int64_t end)
{
    Table part = *t;
    int64_t size = size_of(t->dtype);
    part.from += begin * (t->width - (t->map == EMBED)) * size;
    part.to += begin * (t->width - (t->map == COORDINATES)) * size;
    part.rows = end - begin;
    return part;
}

void map_rows(const Table *t, int64_t most)
{
    int64_t wanted = t->rows * t->width / PER_THREAD;
    wanted = wanted < most ? wanted : most;
    wanted = wanted < t->rows ? wanted : t->rows;
    int number = wanted < 1 ? 1 : wanted < MAX_THREADS ? (int)wanted : MAX_THREADS;
    Table parts[MAX_THREADS];
    for (int i = 0; i < number; i++)
        parts[i] = part_of(t, t->rows * i / number, t->rows * (i + 1) / number);
    run_all(work, parts, sizeof *parts, number);
}
