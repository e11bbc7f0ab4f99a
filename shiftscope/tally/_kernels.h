/* Sums about a pivot, of tables of columns (_columns.c) and of runs (_runs.c). */

#ifndef SHIFTSCOPE_KERNELS_H
#define SHIFTSCOPE_KERNELS_H

#include "_compiled.h"
#include "_moments.h"

#pragma GCC visibility push(hidden) /* no name of these meets one of another library */

#define TILE 1024  /* columns whose sums stay near the processor */
#define TOGETHER 4 /* runs of one column that are read at a time */

/* Sums over the rows of each column: d = x - pivot, and d^2. */
typedef struct {
    double *pivot, *first, *second;
} Sums;

/* One element in double precision. */
double element(const Source *x, int64_t index);

/* A number near the first of `number` elements, `step` apart; exactly theirs where they are equal. */
double pivot_of(const Source *x, int64_t start, int64_t step, int64_t number);

/* The same of up to TILE neighbouring columns of a table of `stride` columns. */
void pivots(const Source *x, int64_t start, int64_t stride, int64_t width, double *to);

/* Sums over rows of up to TILE neighbouring columns; first and second are zero on entry. */
void columns(const Source *x, int64_t start, int64_t rows, int64_t stride, int64_t width, Sums to);

/* Add the runs of one column from up to TOGETHER rows, the first at `start`, to its sums. */
void runs(const Source *x, int64_t start, int64_t rows, double pivot, double *first,
          double *second);

#pragma GCC visibility pop

#endif
