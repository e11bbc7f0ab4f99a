/* A reader and its books: what was read in the running step, and where it stands. */

#ifndef SHIFTSCOPE_READER_H
#define SHIFTSCOPE_READER_H

#include "_native.h"

#define RECENT 4 /* tensors whose columns are remembered */

#pragma GCC visibility push(hidden)

/* Where the moments of one tensor stand until the step ends. */
typedef struct {
    PyObject_HEAD
    long long slot, number, width, rows, offset, parts;
    int dtype;
    PyObject *image;
} Columns;

/* A tensor that was read: where its numbers lie, and what they became. */
typedef struct {
    PyObject *anchor; /* weak reference to it, or to the base that it is a view of */
    PyObject *found;
    unsigned long thread;
    long long version, place[6];
} Entry;

typedef struct {
    PyObject_HEAD
    Known known;
    PyObject *page_of, *image_of, *threads_of; /* what Python gave */
    PyObject *launch_of, *stream_of, *device_of, *failed; /* on a GPU */
    PyObject *page, *pages, *readings; /* records [3, capacity]; Columns, in order of reading */
    PyObject *columns_type, *launch_type;
    PyObject **launches; /* by slot: the kernel that read its tensor last */
    int64_t address, capacity, index, slots;
    long long used;
    Entry recent[RECENT];
    int next, busy; /* busy: reads under way, some perhaps without the interpreter lock */
    int failing;    /* the driver refused a launch: no more are tried */
} Reader;

/* The columns of a tensor that this thread has just read, or NULL; not a new reference. */
PyObject *recall(Reader *self, PyObject *anchor, long long version, const long long place[6]);

/* Remember what a tensor became in the running step; -1 with an exception. */
int remember(Reader *self, PyObject *anchor, long long version, const long long place[6],
             PyObject *found);

/* The next columns of a page, as a reading of the step; a new reference. */
Columns *next_reading(Reader *self, long long slot, const Extent *extent, int dtype);

/* Read a contiguous tensor of a known dtype (_reading.c); a new reference to its Columns, or to
   None where it cannot be read here. */
PyObject *read_tensor(Reader *self, PyObject *x, Seen *seen, long long slot, int dtype, int kind,
                      int with_image);

/* Methods of the reader (_books.c). */
PyObject *reader_reserve(Reader *self, PyObject *args);
PyObject *reader_done(Reader *self, PyObject *ignored);
PyObject *reader_take(Reader *self, PyObject *ignored);

extern const char reserve_doc[], take_doc[];

#pragma GCC visibility pop

#endif
