/* Sums about a pivot of runs: elements of one neuron that lie one behind the other.

   In single or in double precision as in _columns.c. Nothing here knows of Python or of torch. */

#include "_elements.h"

#define AHEAD 1024             /* elements of a run that are asked for before they are read */

typedef float Half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(4 * LANES), aligned(8), may_alias));

INLINE void add_floats(Floats d, Floats *first, Floats *second, Bits *any)
{
    *first += d;
    *second += d * d;
    *any |= (Bits)d;
}

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
