/* First and second moments of the columns of a dense tensor in one pass over memory, and merging.

   The results are those of moments.py up to rounding (2e-6 of a variance at most). Nothing here knows
   of Python or of torch.

   Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance" (1983). */

#include "_kernels.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SHORT 64             /* runs below this are read as columns */
#define PER_THREAD (1 << 18) /* elements that are worth a thread of their own */
#define CANCELLED 0.1        /* a variance below this share of the mean square about the pivot */

/* -- sums of a tensor ---------------------------------------------------------------------------- */

static Sums part_of(Sums sums, int64_t column)
{
    return (Sums){sums.pivot + column, sums.first + column, sums.second + column};
}

/* Sums of all columns over the runs of rows [begin, end). */
static void sums_of_runs(const Source *x, int64_t begin, int64_t end, Sums to)
{
    for (int64_t row = begin; row < end; row += TOGETHER) {
        int64_t rows = end - row < TOGETHER ? end - row : TOGETHER;
        for (int64_t c = 0; c < x->width; c++)
            runs(x, (row * x->width + c) * x->run, rows, to.pivot[c], to.first + c, to.second + c);
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
    to.m2[c] = m2 > 0.0 || m2 != m2 ? m2 : 0.0;
}

/* Moments of all columns; number of those that have to be read again: what is not finite, and what
   was summed in single precision about a pivot so far off that the difference lost its digits. */
WIDEST static int64_t all_rows(double rows, int64_t width, double cancelled, Sums sums, Moments to)
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
        double lost = (second[c] > 0.0) & (square < cancelled * second[c]) ? NAN : 0.0;
        m2[c] = square == square ? m2[c] + lost : square;
        bad += !((fabs(mean[c]) <= DBL_MAX) & (fabs(m2[c]) <= DBL_MAX));
    }
    return bad;
}

static void finish(const Source *x, Sums sums, Moments to)
{
    double rows = (double)(x->rows * x->run);
    if (!all_rows(rows, x->width, x->dtype == FLOAT64 ? 0.0 : CANCELLED, sums, to))
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
    run_all(work, shares, sizeof *shares, number);
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

WIDEST static void merge_columns(int64_t n, double drift, double *restrict count,
                                 double *restrict mean, double *restrict m2,
                                 const double *restrict count_b, const double *restrict mean_b,
                                 const double *restrict m2_b)
{
    for (int64_t i = 0; i < n; i++) {
        double a = count[i], b = count_b[i], both = a + b;
        double share = both > 0.0 ? b / both : 0.0;
        double other = b > 0.0 ? mean_b[i] : mean[i];
        double own = a > 0.0 ? mean[i] : other;
        double step = other - own;
        count[i] = both;
        mean[i] = both > 0.0 ? own + step * share : mean[i];
        m2[i] += both > 0.0 ? m2_b[i] + step * step * share * (a * drift) : 0.0;
    }
}

void merge_moments(int64_t columns, int drift, Moments to, Moments from)
{
    merge_columns(columns, drift ? 1.0 : 0.0, to.count, to.mean, to.m2, from.count, from.mean, from.m2);
}
