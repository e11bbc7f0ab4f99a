/* What the files of the Python module share. */

#ifndef SHIFTSCOPE_NATIVE_H
#define SHIFTSCOPE_NATIVE_H

#include "_python.h"

#include "_dlpack.h"
#include "_moments.h"

#pragma GCC visibility push(hidden) /* no name of these meets one of another library */

enum { ROWS, IMAGE };       /* neurons lie in the last dimension, or in the second */
enum { ON_CPU = -2 };       /* in place of the number of a GPU */
enum { DIMS = 8 };          /* dimensions of a tensor that a kernel on a GPU is known for */

/* -- records (_native.c) -------------------------------------------------------------------------- */

/* Columns from `offset` on of a record [3, capacity] of double precision numbers. */
Moments record(int64_t address, int64_t capacity, int64_t offset);

/* Read a tensor, without the interpreter lock where it is large; not 0 with an exception set. */
int read_source(const Source *x, Moments to, double *image, int64_t threads);

/* -- tensors (_tensors.c) ------------------------------------------------------------------------- */

/* What of torch a tensor is compared with, and asked by. */
typedef struct {
    PyObject *dtypes, *layout, *types;
    PyObject *base, *version, *is_neg; /* of the type: found once, not at each tensor */
    DLDescribe describe;               /* NULL where torch has no such function */
} Known;

/* A tensor as it was found. Numbers, not pointers: Python code that runs later may resize it. */
typedef struct {
    int told;  /* torch told the rest at once; else attributes are asked one by one */
    int dtype; /* its number, or -1 */
    int dims;  /* the sizes of the first DIMS are in `shape` */
    int64_t size; /* number of elements; -1 as long as the sizes are not known */
    int64_t first, second, last; /* sizes; 0 where there is no such dimension */
    int64_t address, stride;     /* of the first element; of the last dimension */
    int64_t shape[DIMS];
} Seen;

/* Make the names of attributes that are asked for; -1 with an exception set. */
int intern_words(void);

/* Find out by what tensors are asked: `table` is a capsule with torch's functions, or None. -1 with
   an exception set. */
int know(Known *known, PyObject *table);

/* An integer, and the reference to it given back; -1 with an exception set where there is none. */
int64_t integer(PyObject *value);

/* Address of the first element of a tensor, by its own method. */
int64_t data_ptr_of(PyObject *x);

/* Look at a tensor: whether it lies on a device, and could be read; -1 with an exception. */
int see(const Known *known, PyObject *x, int64_t index, Seen *seen);

/* What a tensor is a view of, or None. */
PyObject *base_of(const Known *known, PyObject *x, const Seen *seen);

/* How often its contents changed, in `version`: 0 where it does not count, -1 with an exception. */
int version_of(const Known *known, PyObject *x, const Seen *seen, long long *version);

/* Number of the dtype of a tensor whose elements lie dense in memory; -1 where they do not or
   cannot be read, -2 with an exception. */
int dtype_of(const Known *known, PyObject *x, const Seen *seen);

/* Where the elements of a view lie: views of one base are distinct objects that may hold the same
   rows. -1 with an exception. */
int place_of(PyObject *x, Seen *seen, int kind, long long place[6]);

/* Ask for the sizes unless they are known; -1 with an exception. */
int measure(PyObject *x, Seen *seen);

/* Address of the first element; -1 with an exception. */
int64_t address_of(PyObject *x, const Seen *seen);

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
int launch_fits(const Launch *launch, const Seen *seen, const int form[3], int64_t address);

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
