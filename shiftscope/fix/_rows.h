/* Linear maps of rows about the ones direction: see _rows.c. */

#ifndef SHIFTSCOPE_ROWS_H
#define SHIFTSCOPE_ROWS_H

#include <stdint.h>

#pragma GCC visibility push(hidden) /* no name of these meets one of another library */

enum { EMBED, COORDINATES, PROJECT, MAPS };
enum { FLOAT32, FLOAT64, DTYPES };

/* A map from one dense table to another that lies elsewhere. Their rows have `width` elements;
   those of coordinates, which EMBED reads and COORDINATES writes, have one fewer. */
typedef struct {
    int map, dtype;
    const char *from;
    char *to;
    int64_t rows, width;
} Table;

/* Map all rows, by up to `threads` threads. */
void map_rows(const Table *table, int64_t threads);

#pragma GCC visibility pop

#endif
