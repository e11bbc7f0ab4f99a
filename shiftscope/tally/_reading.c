/* Reading one tensor into columns: on the CPU at once, on a GPU by launching the kernel that does. */

#include "_reader.h"

#define THREADED (1 << 19) /* elements from which on several threads may read */
#define SLOTS (1 << 20)    /* slots whose launches are remembered */
#define NO_CONTEXT 201     /* error of the driver: this thread has not used the GPU yet */

/* -- on the CPU ---------------------------------------------------------------------------------- */

/* Memory for a mean image, and its address. */
static PyObject *image_for(Reader *self, int64_t width, int64_t run, int64_t *address)
{
    PyObject *image = PyObject_CallFunction(self->image_of, "LL", (long long)width, (long long)run);
    *address = image ? data_ptr_of(image) : 0;
    if (image && !PyErr_Occurred() && !*address)
        PyErr_SetString(PyExc_ValueError, "an image without memory");
    if (PyErr_Occurred())
        Py_CLEAR(image);
    return image;
}

/* Read a contiguous tensor of a known dtype on the CPU; a new reference to its Columns. */
static PyObject *read_here(Reader *self, PyObject *x, Seen *seen, long long slot, int dtype,
                           int kind, int with_image)
{
    if (measure(x, seen) < 0)
        return NULL;
    const int64_t size = seen->size, width = kind == ROWS ? seen->last : seen->second;
    if (size < 1 || width < 1)
        Py_RETURN_NONE;
    const int64_t rows = size / width, samples = kind == ROWS ? rows : seen->first;
    int64_t means = 0, threads = 1;
    if (size >= THREADED)
        threads = integer(PyObject_CallNoArgs(self->threads_of));
    if (PyErr_Occurred())
        return NULL;
    PyObject *image = NULL;
    if (with_image && kind == IMAGE && !(image = image_for(self, width, rows / samples, &means)))
        return NULL;
    const char *data = (const char *)(intptr_t)address_of(x, seen);
    if (!PyErr_Occurred() && !data)
        PyErr_SetString(PyExc_ValueError, "a tensor without memory on the CPU");
    const Extent extent = {width, rows, 1, 1};
    Columns *made = PyErr_Occurred() ? NULL : next_reading(self, slot, &extent, dtype);
    if (!made) {
        Py_XDECREF(image);
        return NULL;
    }
    made->image = image;
    /* Held while the lock may be released: another thread may take the page away. */
    PyObject *page = Py_NewRef(self->page);
    Source source = {data, dtype, samples, width, rows / samples};
    self->busy++;
    int failed = read_source(&source, record(self->address, self->capacity, made->offset),
                             (double *)(intptr_t)means, threads);
    self->busy--;
    if (failed)
        Py_CLEAR(made);
    Py_DECREF(page);
    return (PyObject *)made;
}

/* -- on a GPU ------------------------------------------------------------------------------------ */

static int room_for_slot(Reader *self, long long slot)
{
    if (slot < self->slots)
        return 0;
    int64_t more = slot + slot / 2 + 64;
    PyObject **grown = PyMem_Realloc(self->launches, (size_t)more * sizeof *grown);
    if (!grown) {
        PyErr_NoMemory();
        return -1;
    }
    memset(grown + self->slots, 0, (size_t)(more - self->slots) * sizeof *grown);
    self->launches = grown, self->slots = more;
    return 0;
}

/* The kernel that reads a tensor: the one of its slot, else one from Python; a new reference.
   NULL without an exception where there is none yet. */
static PyObject *launch_for(Reader *self, PyObject *x, Seen *seen, long long slot,
                            const int form[3], int64_t address)
{
    if (slot < 0 || slot >= SLOTS || room_for_slot(self, slot) < 0 || measure(x, seen) < 0)
        return NULL;
    PyObject *launch = self->launches[slot];
    if (launch && launch_fits((Launch *)launch, seen, form, address))
        return Py_NewRef(launch);
    launch = PyObject_CallFunction(self->launch_of, "Oiii", x, form[0], form[1], form[2]);
    if (launch && launch != Py_None && (PyObject *)Py_TYPE(launch) != self->launch_type) {
        PyErr_SetString(PyExc_TypeError, "expected a Launch, or None");
        Py_CLEAR(launch);
    }
    if (launch == Py_None)
        Py_CLEAR(launch);
    if (launch && !launch_fits((Launch *)launch, seen, form, address))
        Py_CLEAR(launch);
    if (launch)
        Py_XSETREF(self->launches[slot], Py_NewRef(launch));
    return launch;
}

/* Whether the current device of this thread is the reader's; -1 with an exception. */
static int is_current(const Reader *self)
{
    if (self->device_of == Py_None)
        return 1;
    int64_t index = integer(PyObject_CallNoArgs(self->device_of));
    return PyErr_Occurred() ? -1 : index == self->index;
}

/* Launch on a stream; 0 where the columns were not written. */
static int launch_into(Reader *self, PyObject *launch, Columns *made, int64_t address,
                       int64_t means, int64_t stream)
{
    PyObject *page = Py_NewRef(self->page);
    const Reading reading = {address, self->address, means, self->capacity, made->offset};
    self->busy++;
    int code = launch_kernel((Launch *)launch, &reading, stream);
    self->busy--;
    if (code) {
        self->failing |= code != NO_CONTEXT; /* a context is what Triton's launcher makes */
        long long columns = made->width * made->parts;
        PyObject *told = PyObject_CallFunction(self->failed, "OLLi", page, made->offset, columns,
                                               code);
        Py_XDECREF(told);
    }
    Py_DECREF(page);
    return !code;
}

/* Launch the kernel that reads a tensor; a new reference to its Columns, or to None. */
static PyObject *read_there(Reader *self, PyObject *x, Seen *seen, long long slot, int dtype,
                            int kind, int with_image)
{
    const int form[3] = {dtype, kind, with_image && kind == IMAGE}, current = is_current(self);
    int64_t address = current == 1 ? address_of(x, seen) : 0, means = 0;
    if (PyErr_Occurred())
        return NULL;
    PyObject *launch = address ? launch_for(self, x, seen, slot, form, address) : NULL;
    if (!launch)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    const Extent extent = extent_of((Launch *)launch);
    int64_t stream = integer(PyObject_CallFunction(self->stream_of, "L", (long long)self->index));
    PyObject *image = form[2] && !PyErr_Occurred()
                          ? image_for(self, extent.width, extent.run, &means)
                          : NULL;
    /* The reading last: from there to its launch no other code runs. */
    Columns *made = PyErr_Occurred() ? NULL : next_reading(self, slot, &extent, dtype);
    if (made)
        made->image = Py_XNewRef(image);
    if (made && !launch_into(self, launch, made, address, means, stream))
        Py_CLEAR(made);
    Py_XDECREF(image);
    Py_DECREF(launch);
    return made || PyErr_Occurred() ? (PyObject *)made : Py_NewRef(Py_None);
}

/* -- on either ----------------------------------------------------------------------------------- */

PyObject *read_tensor(Reader *self, PyObject *x, Seen *seen, long long slot, int dtype, int kind,
                      int with_image)
{
    return (self->index == ON_CPU ? read_here : read_there)(self, x, seen, slot, dtype, kind,
                                                            with_image);
}
