/* First and second moments of the columns of dense tensors: see _moments.c. */

#ifndef SHIFTSCOPE_MOMENTS_H
#define SHIFTSCOPE_MOMENTS_H

#include <stdint.h>

#pragma GCC visibility push(hidden) /* no name of these meets one of another library */

enum { FLOAT32, FLOAT64, BFLOAT16, FLOAT16, DTYPES };

/* A tensor seen as [rows, width, run]: `width` columns, `run` neighbouring elements of each. */
typedef struct {
    const char *data;
    int dtype;
    int64_t rows, width, run;
} Source;

/* Count, mean (NaN where the count is 0) and sum of squared deviations of each column. */
typedef struct {
    double *count, *mean, *m2;
} Moments;

/* Write the moments of all columns of a tensor, and the means over its rows to `image`
   [width, run] unless that is NULL; by up to `threads` threads. Not 0 where memory ran out. */
int read_moments(const Source *x, Moments to, double *image, int64_t threads);

/* Merge the moments of other rows of the same columns; without `drift`, how far apart the means of
   both lie does not count as deviation. */
void merge_moments(int64_t columns, int drift, Moments to, Moments from);

#pragma GCC visibility pop

#endif
