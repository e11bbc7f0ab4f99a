/* What the files of the Python module share. */

#ifndef SHIFTSCOPE_NATIVE_H
#define SHIFTSCOPE_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_moments.h"

#pragma GCC visibility push(hidden) /* no name of these meets one of another library */

/* Columns from `offset` on of a record [3, capacity] of double precision numbers. */
Moments record(int64_t address, int64_t capacity, int64_t offset);

/* Read a tensor, without the interpreter lock where it is large; not 0 with an exception set. */
int read_source(const Source *x, Moments to, double *image, int64_t threads);

/* Make the names of attributes that the reader asks for; -1 with an exception set. */
int intern_words(void);

extern PyType_Spec columns_spec, reader_spec;

#pragma GCC visibility pop

#endif
