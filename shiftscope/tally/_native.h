/* What the files of the Python module share. */

#ifndef SHIFTSCOPE_NATIVE_H
#define SHIFTSCOPE_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_moments.h"

#pragma GCC visibility push(hidden) /* no name of these meets one of another library */

enum { ROWS, IMAGE };       /* neurons lie in the last dimension, or in the second */
enum { ON_CPU = -2 };       /* in place of the number of a GPU */

/* -- records (_native.c) -------------------------------------------------------------------------- */

/* Columns from `offset` on of a record [3, capacity] of double precision numbers. */
Moments record(int64_t address, int64_t capacity, int64_t offset);

/* Read a tensor, without the interpreter lock where it is large; not 0 with an exception set. */
int read_source(const Source *x, Moments to, double *image, int64_t threads);

/* -- tensors (_tensors.c) ------------------------------------------------------------------------- */

/* What of torch a tensor is compared with. */
typedef struct {
    PyObject *dtypes, *layout, *types;
} Known;

extern PyObject *word_is_contiguous, *word_shape, *word_data_ptr, *word_base, *word_version,
    *word_numel;

/* Make the names of attributes that are asked for; -1 with an exception set. */
int intern_words(void);

/* A truth, or an integer, and the reference to it given back; -1 with an exception set where there
   is none. */
int is_true(PyObject *value);
int64_t integer(PyObject *value);

/* What a method without arguments returns. */
PyObject *call(PyObject *x, PyObject *word);

/* Whether a tensor lies on a device; -1 with an exception. */
int lies_on(PyObject *x, int64_t index);

/* Number of the dtype of a tensor; -1 where its memory cannot be read, -2 with an exception. */
int dtype_of(const Known *known, PyObject *x);

/* A size; 0 where there is no such dimension. */
int64_t size_at(PyObject *x, Py_ssize_t dim);

/* Where the elements of a tensor lie. A tensor of its own is known by itself; views of one base
   are distinct objects that may hold the same rows. -1 with an exception. */
int place_of(PyObject *x, int kind, int is_view, long long place[6]);

/* -- launches (_launch.c) ------------------------------------------------------------------------- */

typedef struct Launch Launch;

/* A tensor that a kernel is to read, and where to. */
typedef struct {
    int64_t address, page, image, capacity, offset;
} Reading;

/* Columns that a launch writes, and the shape [width, run] of its mean image. */
typedef struct {
    int64_t width, rows, parts, run;
} Extent;

Extent extent_of(const Launch *launch);

/* Whether a launch reads tensors of this form. */
int launch_fits(const Launch *launch, PyObject *shape, const int form[3], int64_t address);

/* Launch on a stream, without the interpreter lock; an error number of the driver. */
int launch_kernel(const Launch *launch, const Reading *reading, int64_t stream);

/* -- the end of a step (_steps.c, _counters.c) ---------------------------------------------------- */

PyObject *steps_only_type(PyObject *module, PyObject *writes);
PyObject *steps_all_within(PyObject *module, PyObject *const *args, Py_ssize_t number);
PyObject *steps_form_of(PyObject *module, PyObject *const *args, Py_ssize_t number);
PyObject *steps_add_rows(PyObject *module, PyObject *const *args, Py_ssize_t number);
PyObject *steps_short_of(PyObject *module, PyObject *const *args, Py_ssize_t number);
PyObject *counters_count(PyObject *module, PyObject *const *args, Py_ssize_t number);

extern const char only_type_doc[], all_within_doc[], form_of_doc[], add_rows_doc[],
    short_of_doc[], count_doc[];

extern PyType_Spec columns_spec, parts_spec, reader_spec, launch_spec, counters_spec;

#pragma GCC visibility pop

#endif
