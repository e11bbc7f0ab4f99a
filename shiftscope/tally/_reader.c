/* The reader: keeps the books of a step in which many tensors are read.

   On the CPU it reads them itself; on a GPU it launches the kernels that do. */

#include "_reader.h"

#include <structmember.h>

#define THREADED (1 << 19) /* elements from which on several threads may read */
#define SLOTS (1 << 20)    /* slots whose launches are remembered */
#define NO_CONTEXT 201     /* error of the driver: this thread has not used the GPU yet */

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

/* Read a contiguous tensor of a known dtype. */
static PyObject *read_tensor(Reader *self, PyObject *x, Seen *seen, long long slot, int dtype,
                             int kind, int with_image)
{
    return (self->index == ON_CPU ? read_here : read_there)(self, x, seen, slot, dtype, kind,
                                                            with_image);
}

/* -- methods ------------------------------------------------------------------------------------- */

PyDoc_STRVAR(look_doc,
"look(tensor, slot, kind, image)\n--\n\n"
"Columns of a tensor, read unless this thread did so just now; None where it cannot be read here\n"
"or has no elements. kind: 0 for neurons in the last dimension, 1 for the second.");

static PyObject *reader_look(Reader *self, PyObject *const *args, Py_ssize_t number)
{
    if (number != 4) {
        PyErr_SetString(PyExc_TypeError, "expected tensor, slot, kind and image");
        return NULL;
    }
    PyObject *x = args[0], *found = NULL;
    long long slot = PyLong_AsLongLong(args[1]), kind = PyLong_AsLongLong(args[2]);
    int with_image = PyObject_IsTrue(args[3]);
    if (PyErr_Occurred())
        return NULL;
    Seen seen;
    int here = self->failing ? 0 : see(&self->known, x, self->index, &seen);
    if (!here)
        Py_RETURN_NONE;
    /* A tensor of its own is known by itself, while its memory is the same (`x.data = y`): one that
       was is no view since. */
    long long version, place[6] = {(int)kind, here > 0 && seen.told ? seen.address : 0};
    int known = here < 0 ? -1 : version_of(&self->known, x, &seen, &version);
    if (known > 0 && (found = recall(self, x, version, place)))
        return Py_NewRef(found);
    PyObject *base = known < 0 ? NULL : base_of(&self->known, x, &seen);
    if (!base)
        return NULL;
    PyObject *anchor = base == Py_None ? x : base;
    int dtype = dtype_of(&self->known, x, &seen);
    if (dtype < 0) {
        found = dtype == -1 ? Py_NewRef(Py_None) : NULL;
        goto done;
    }
    /* Of a contiguous view the place tells which elements it has; of others it would not. */
    if (base != Py_None && place_of(x, &seen, (int)kind, place) < 0)
        goto done;
    if (known && base != Py_None)
        found = Py_XNewRef(recall(self, anchor, version, place));
    if (found)
        goto done;
    found = read_tensor(self, x, &seen, slot, dtype, (int)kind, with_image);
    if (known && found && found != Py_None && remember(self, anchor, version, place, found) < 0)
        Py_CLEAR(found);
done:
    Py_DECREF(base);
    return found;
}

PyDoc_STRVAR(reader_read_doc,
"read(tensor, slot, kind, image)\n--\n\n"
"Columns of a contiguous tensor, read in any case; None where it cannot be read here.");

static PyObject *reader_read(Reader *self, PyObject *const *args, Py_ssize_t number)
{
    if (number != 4) {
        PyErr_SetString(PyExc_TypeError, "expected tensor, slot, kind and image");
        return NULL;
    }
    long long slot = PyLong_AsLongLong(args[1]), kind = PyLong_AsLongLong(args[2]);
    int with_image = PyObject_IsTrue(args[3]);
    if (PyErr_Occurred())
        return NULL;
    Seen seen;
    int here = self->failing ? 0 : see(&self->known, args[0], self->index, &seen);
    int dtype = here > 0 ? dtype_of(&self->known, args[0], &seen) : here - 1;
    if (dtype == -2)
        return NULL;
    if (dtype < 0)
        Py_RETURN_NONE;
    return read_tensor(self, args[0], &seen, slot, dtype, (int)kind, with_image);
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *dtypes, *layout, *types, *table, *page_of, *image_of, *threads_of;
    PyObject *launch_of = Py_None, *stream_of = Py_None, *device_of = Py_None, *failed = Py_None;
    long long index = ON_CPU;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!OO!OOOO|(LOOOO)", &PyTuple_Type, &dtypes, &layout,
                          &PyTuple_Type, &types, &table, &page_of, &image_of, &threads_of, &index,
                          &launch_of, &stream_of, &device_of, &failed))
        return NULL;
    if (PyTuple_GET_SIZE(dtypes) != DTYPES || PyTuple_GET_SIZE(types) != 2) {
        PyErr_SetString(PyExc_ValueError, "expected four dtypes and two types");
        return NULL;
    }
    PyObject *module = PyType_GetModule(type);
    Reader *self = module ? (Reader *)type->tp_alloc(type, 0) : NULL;
    if (!self)
        return NULL;
    self->known.dtypes = Py_NewRef(dtypes);
    self->known.layout = Py_NewRef(layout);
    self->known.types = Py_NewRef(types);
    self->page_of = Py_NewRef(page_of);
    self->image_of = Py_NewRef(image_of);
    self->threads_of = Py_NewRef(threads_of);
    self->launch_of = Py_NewRef(launch_of);
    self->stream_of = Py_NewRef(stream_of);
    self->device_of = Py_NewRef(device_of);
    self->failed = Py_NewRef(failed);
    self->index = index;
    self->readings = PyList_New(0);
    self->pages = PyList_New(0);
    self->columns_type = PyObject_GetAttrString(module, index == ON_CPU ? "Columns" : "Parts");
    self->launch_type = PyObject_GetAttrString(module, "Launch");
    if (know(&self->known, table) < 0 || !self->readings || !self->pages || !self->columns_type
        || !self->launch_type)
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* What Python gives must not refer back to the reader: it takes no part in collecting cycles. */
static void reader_free(Reader *self)
{
    PyTypeObject *type = Py_TYPE(self);
    const Known *known = &self->known;
    PyObject *held[] = {known->dtypes, known->layout, known->types, known->base, known->version,
                        known->is_neg, self->page_of, self->image_of, self->threads_of,
                        self->launch_of, self->stream_of, self->device_of, self->failed, self->page,
                        self->pages, self->readings, self->columns_type, self->launch_type};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++)
        Py_XDECREF(held[i]);
    for (int i = 0; i < RECENT; i++) {
        Py_XDECREF(self->recent[i].anchor);
        Py_XDECREF(self->recent[i].found);
    }
    for (int64_t slot = 0; slot < self->slots; slot++)
        Py_XDECREF(self->launches[slot]);
    PyMem_Free(self->launches);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef reader_methods[] = {
    {"look", (PyCFunction)(void (*)(void))reader_look, METH_FASTCALL, look_doc},
    {"read", (PyCFunction)(void (*)(void))reader_read, METH_FASTCALL, reader_read_doc},
    {"reserve", (PyCFunction)reader_reserve, METH_VARARGS, reserve_doc},
    {"done", (PyCFunction)reader_done, METH_NOARGS, "Reserved columns are written."},
    {"take", (PyCFunction)reader_take, METH_NOARGS, take_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef reader_members[] = {
    {"readings", T_OBJECT_EX, offsetof(Reader, readings), READONLY, "Columns, in order."},
    {"pages", T_OBJECT_EX, offsetof(Reader, pages), READONLY, "The records they lie in."},
    {"used", T_LONGLONG, offsetof(Reader, used), READONLY, "Columns used of the last page."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, "Reads tensors into pages of columns: Reader(dtypes, layout, types, table,\n"
                "page_of, image_of, threads_of), and for a GPU also (its number, launch_of,\n"
                "stream_of, device_of or None, failed)."},
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_free},
    {Py_tp_methods, reader_methods},
    {Py_tp_members, reader_members},
    {0, NULL},
};

PyType_Spec reader_spec = {
    "shiftscope.tally._native.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, reader_slots,
};
