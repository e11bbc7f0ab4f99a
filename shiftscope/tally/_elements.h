/* Elements of a tensor as the sums of _columns.c and _runs.c take them: see _elements.c. */

#ifndef SHIFTSCOPE_ELEMENTS_H
#define SHIFTSCOPE_ELEMENTS_H

#include "_kernels.h"

#include <string.h>

#define LANES 16
#define BLOCK 32               /* additions in single precision, one after the other */
#define LEAST 1e-28            /* a mean square below this may have lost squares to underflow */
#define MOST 1e30

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#pragma GCC visibility push(hidden)

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

/* n neighbouring elements of half precision in single precision: in the buffer. */
void widen(const Source *x, int64_t start, int64_t n, float *buffer);

/* n neighbouring elements in single precision: where they lie, or in the buffer given. */
INLINE const float *floats(const Source *x, int64_t start, int64_t n, float *buffer)
{
    if (x->dtype == FLOAT32)
        return (const float *)x->data + start;
    widen(x, start, n, buffer);
    return buffer;
}

#pragma GCC visibility pop

#endif
