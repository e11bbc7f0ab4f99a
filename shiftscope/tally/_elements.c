/* Reading elements of any dtype in single and double precision, and pivots near the first of them.

   Nothing here knows of Python or of torch. */

#include "_elements.h"

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

void widen(const Source *x, int64_t start, int64_t n, float *buffer)
{
    const uint16_t *halves = (const uint16_t *)x->data + start;
    if (x->dtype == BFLOAT16)
        widen_bfloat16(halves, n, buffer);
    else
        widen_float16(halves, n, buffer);
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
