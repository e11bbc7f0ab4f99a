/* The reader as Python sees it: which tensors it reads, and which it has read just now. */

#include "_reader.h"

#include <structmember.h>

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
