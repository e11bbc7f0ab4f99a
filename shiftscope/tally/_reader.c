/* The reader: keeps the books of a step in which many tensors are read.

   Tensors are handled as Python objects, by their attributes: neither torch's headers nor its
   binary interface are needed, so that one build serves every torch. */

#include "_native.h"

#include <structmember.h>

#define THREADED (1 << 19) /* elements from which on several threads may read */
#define RECENT 4           /* tensors whose columns are remembered */

enum { ROWS, IMAGE };

/* -- Columns ------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    long long slot, number, width, rows;
    int dtype;
    PyObject *image;
} Columns;

static void columns_free(Columns *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->image);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef columns_members[] = {
    {"slot", T_LONGLONG, offsetof(Columns, slot), READONLY, "What the tensor was read for first."},
    {"number", T_LONGLONG, offsetof(Columns, number), READONLY, "Readings of this step before it."},
    {"width", T_LONGLONG, offsetof(Columns, width), READONLY, "Number of neurons."},
    {"rows", T_LONGLONG, offsetof(Columns, rows), READONLY, "Rows behind them."},
    {"dtype", T_INT, offsetof(Columns, dtype), READONLY, "Number of the tensor's dtype."},
    {"image", T_OBJECT, offsetof(Columns, image), READONLY,
     "Mean over samples [neurons, positions] in float64; None where not asked for."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot columns_slots[] = {
    {Py_tp_doc, "Where the moments of one tensor stand until the step ends."},
    {Py_tp_dealloc, columns_free},
    {Py_tp_members, columns_members},
    {0, NULL},
};

PyType_Spec columns_spec = {
    "shiftscope.tally._native.Columns", sizeof(Columns), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, columns_slots,
};

/* -- Reader -------------------------------------------------------------------------------------- */

/* A tensor that was read: where its numbers lie, and what they became. */
typedef struct {
    PyObject *anchor; /* weak reference to it, or to the base that it is a view of */
    PyObject *found;
    unsigned long thread;
    long long version, place[6];
} Entry;

typedef struct {
    PyObject_HEAD
    PyObject *dtypes, *layout, *types, *page_of, *image_of, *threads_of; /* what Python gave */
    PyObject *page, *pages, *readings; /* records [3, capacity]; Columns, in order of reading */
    PyObject *columns_type;
    int64_t address, capacity;
    long long used;
    Entry recent[RECENT];
    int next, busy; /* busy: reads under way, some perhaps without the interpreter lock */
} Reader;

static PyObject *word_is_cpu, *word_dtype, *word_layout, *word_is_nested, *word_is_neg, *word_numel,
    *word_is_contiguous, *word_shape, *word_data_ptr, *word_base, *word_version, *word_offset,
    *word_stride;

static const struct {
    PyObject **word;
    const char *text;
} words[] = {
    {&word_is_cpu, "is_cpu"}, {&word_dtype, "dtype"}, {&word_layout, "layout"},
    {&word_is_nested, "is_nested"}, {&word_is_neg, "is_neg"}, {&word_numel, "numel"},
    {&word_is_contiguous, "is_contiguous"}, {&word_shape, "shape"}, {&word_data_ptr, "data_ptr"},
    {&word_base, "_base"}, {&word_version, "_version"}, {&word_offset, "storage_offset"},
    {&word_stride, "stride"},
};

static int is_true(PyObject *value)
{
    int result = value ? PyObject_IsTrue(value) : -1;
    Py_XDECREF(value);
    return result;
}

/* An integer, and the reference to it given back; -1 with an exception set where there is none. */
static int64_t integer(PyObject *value)
{
    int64_t result = value ? PyLong_AsLongLong(value) : -1;
    Py_XDECREF(value);
    return result;
}

static PyObject *call(PyObject *x, PyObject *word) { return PyObject_CallMethodNoArgs(x, word); }

/* Number of the dtype of a tensor on the CPU; -1 where it cannot be read, -2 with an exception. */
static int dtype_of(const Reader *self, PyObject *x)
{
    PyObject *type = (PyObject *)Py_TYPE(x);
    if (type != PyTuple_GET_ITEM(self->types, 0) && type != PyTuple_GET_ITEM(self->types, 1))
        return -1;
    PyObject *dtype = PyObject_GetAttr(x, word_dtype), *layout = PyObject_GetAttr(x, word_layout);
    int found = -1, strided = layout == self->layout;
    for (int i = 0; i < DTYPES; i++)
        if (dtype == PyTuple_GET_ITEM(self->dtypes, i))
            found = i;
    Py_XDECREF(dtype);
    Py_XDECREF(layout);
    if (!dtype || !layout)
        return -2;
    if (found < 0 || !strided)
        return -1;
    int nested = is_true(PyObject_GetAttr(x, word_is_nested));
    int negated = is_true(call(x, word_is_neg));
    if (nested < 0 || negated < 0)
        return -2;
    return !nested && !negated ? found : -1;
}

static int64_t size_at(PyObject *x, Py_ssize_t dim)
{
    PyObject *shape = PyObject_GetAttr(x, word_shape);
    if (!shape || !PyTuple_Check(shape)) {
        Py_XDECREF(shape);
        return -1;
    }
    Py_ssize_t dims = PyTuple_GET_SIZE(shape), place = dim < 0 ? dims + dim : dim;
    int64_t size = place >= 0 && place < dims ? PyLong_AsLongLong(PyTuple_GET_ITEM(shape, place)) : 0;
    Py_DECREF(shape);
    return size;
}

/* Where the elements of a tensor lie. A tensor of its own is known by itself; views of one base
   are distinct objects that may hold the same rows. */
static int place_of(PyObject *x, int kind, int is_view, long long place[6])
{
    memset(place, 0, 6 * sizeof *place);
    place[0] = kind;
    if (!is_view)
        return 0;
    place[1] = integer(call(x, word_offset));
    place[2] = integer(call(x, word_numel));
    place[3] = size_at(x, kind == ROWS ? -1 : 1);
    place[5] = kind == ROWS ? 0 : size_at(x, 0); /* images of other sizes may have as many channels */
    PyObject *strides = call(x, word_stride);
    if (strides && PyTuple_Check(strides) && PyTuple_GET_SIZE(strides))
        place[4] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides, PyTuple_GET_SIZE(strides) - 1));
    Py_XDECREF(strides);
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *alive(PyObject *reference)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *object = NULL;
    if (PyWeakref_GetRef(reference, &object) < 0)
        PyErr_Clear();
    Py_XDECREF(object); /* only compared with one that is alive */
    return object;
#else
    return PyWeakref_GetObject(reference);
#endif
}

static PyObject *recall(Reader *self, PyObject *anchor, long long version, const long long place[6])
{
    unsigned long thread = PyThread_get_thread_ident();
    for (int i = 1; i <= RECENT; i++) {
        Entry *entry = &self->recent[(self->next + RECENT - i) % RECENT];
        if (entry->anchor && entry->version == version && entry->thread == thread
            && alive(entry->anchor) == anchor && !memcmp(entry->place, place, sizeof entry->place))
            return entry->found;
    }
    return NULL;
}

static int remember(Reader *self, PyObject *anchor, long long version, const long long place[6],
                    PyObject *found)
{
    PyObject *reference = PyWeakref_NewRef(anchor, NULL);
    if (!reference)
        return -1;
    Entry *entry = &self->recent[self->next], old = *entry;
    self->next = (self->next + 1) % RECENT;
    entry->anchor = reference;
    entry->found = Py_NewRef(found);
    entry->thread = PyThread_get_thread_ident();
    entry->version = version;
    memcpy(entry->place, place, sizeof entry->place);
    Py_XDECREF(old.anchor);
    Py_XDECREF(old.found);
    return 0;
}

static int turn_page(Reader *self, int64_t width)
{
    PyObject *page = PyObject_CallFunction(self->page_of, "L", (long long)width);
    int64_t address = page ? integer(PyObject_GetAttrString(page, "address")) : -1;
    int64_t capacity = page ? integer(PyObject_GetAttrString(page, "capacity")) : -1;
    if (!PyErr_Occurred() && capacity < width)
        PyErr_SetString(PyExc_ValueError, "the new page is too small");
    PyObject *used = PyErr_Occurred() ? NULL : PyLong_FromLongLong(self->used);
    if (!used || (self->page && PyObject_SetAttrString(self->page, "used", used) < 0)
        || PyList_Append(self->pages, page) < 0) {
        Py_XDECREF(used);
        Py_XDECREF(page);
        return -1;
    }
    Py_DECREF(used);
    Py_XSETREF(self->page, page);
    self->address = address, self->capacity = capacity, self->used = 0;
    return 0;
}

/* Room for some more columns, on a new page from Python where this one is full. */
static int64_t columns_for(Reader *self, int64_t width)
{
    while (!self->page || self->used > self->capacity - width)
        if (turn_page(self, width) < 0)
            return -1;
    int64_t offset = self->used;
    self->used += width;
    return offset;
}

/* Read a contiguous tensor of a known dtype; a new reference to its Columns. */
static PyObject *read_tensor(Reader *self, PyObject *x, long long slot, int dtype, int kind,
                             int with_image)
{
    int64_t size = integer(call(x, word_numel)), width = size_at(x, kind == ROWS ? -1 : 1);
    int64_t samples = kind == ROWS || size < 1 ? 0 : size_at(x, 0);
    if (PyErr_Occurred())
        return NULL;
    if (size < 1 || width < 1)
        Py_RETURN_NONE;
    int64_t rows = size / width, threads = 1;
    if (kind == ROWS)
        samples = rows;
    if (size >= THREADED)
        threads = integer(PyObject_CallNoArgs(self->threads_of));
    if (PyErr_Occurred())
        return NULL;
    PyObject *image = NULL;
    double *means = NULL;
    if (with_image && kind == IMAGE) {
        image = PyObject_CallFunction(self->image_of, "LL", (long long)width,
                                      (long long)(rows / samples));
        means = image ? (double *)(intptr_t)integer(call(image, word_data_ptr)) : NULL;
    }
    const char *data = (const char *)(intptr_t)(image || !with_image || kind != IMAGE
                                                    ? integer(call(x, word_data_ptr))
                                                    : 0);
    if (!PyErr_Occurred() && (!data || (image && !means)))
        PyErr_SetString(PyExc_ValueError, "a tensor without memory on the CPU");
    int64_t offset = PyErr_Occurred() ? -1 : columns_for(self, width);
    Columns *made = offset < 0 ? NULL : PyObject_New(Columns, (PyTypeObject *)self->columns_type);
    if (!made) {
        Py_XDECREF(image);
        return NULL;
    }
    made->slot = slot, made->number = PyList_GET_SIZE(self->readings);
    made->width = width, made->rows = rows, made->dtype = dtype, made->image = image;
    /* Held while the lock may be released: another thread may take the page away. */
    PyObject *page = Py_NewRef(self->page);
    Source source = {data, dtype, samples, width, rows / samples};
    int failed = PyList_Append(self->readings, (PyObject *)made) < 0;
    self->busy++;
    if (!failed)
        failed = read_source(&source, record(self->address, self->capacity, offset), means, threads);
    self->busy--;
    if (failed)
        Py_CLEAR(made);
    Py_DECREF(page);
    return (PyObject *)made;
}

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
    int cpu = is_true(PyObject_GetAttr(x, word_is_cpu));
    if (!cpu)
        Py_RETURN_NONE;
    PyObject *base = cpu < 0 ? NULL : PyObject_GetAttr(x, word_base);
    if (!base)
        return NULL;
    PyObject *anchor = base == Py_None ? x : base;
    long long place[6], version = integer(PyObject_GetAttr(x, word_version));
    int known = version != -1;
    if (!known) { /* tensors made in inference mode have no version */
        if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) {
            Py_DECREF(base);
            return NULL;
        }
        PyErr_Clear();
    }
    if (place_of(x, (int)kind, base != Py_None, place) < 0)
        goto done;
    /* Of a contiguous tensor the place tells which elements it has; of others it does not. */
    int dtype = dtype_of(self, x);
    if (dtype == -2)
        goto done;
    int dense = dtype < 0 ? 0 : is_true(call(x, word_is_contiguous));
    if (dense < 0)
        goto done;
    if (!dense) {
        found = Py_NewRef(Py_None);
        goto done;
    }
    if (known)
        found = Py_XNewRef(recall(self, anchor, version, place));
    if (found)
        goto done;
    found = read_tensor(self, x, slot, dtype, (int)kind, with_image);
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
    int cpu = is_true(PyObject_GetAttr(args[0], word_is_cpu));
    int dtype = cpu > 0 ? dtype_of(self, args[0]) : cpu - 1;
    int dense = dtype < 0 ? 0 : is_true(call(args[0], word_is_contiguous));
    if (dtype == -2 || dense < 0)
        return NULL;
    if (!dense)
        Py_RETURN_NONE;
    return read_tensor(self, args[0], slot, dtype, (int)kind, with_image);
}

PyDoc_STRVAR(take_doc,
"take()\n--\n\n"
"All readings, the pages they lie in, and whether some thread is still reading; none are left.");

static PyObject *reader_take(Reader *self, PyObject *ignored)
{
    (void)ignored;
    PyObject *readings = PyList_New(0), *pages = PyList_New(0);
    PyObject *used = PyLong_FromLongLong(self->used);
    if (!readings || !pages || !used
        || (self->page && PyObject_SetAttrString(self->page, "used", used) < 0)) {
        Py_XDECREF(readings);
        Py_XDECREF(pages);
        Py_XDECREF(used);
        return NULL;
    }
    Py_DECREF(used);
    Entry old[RECENT];
    PyObject *page = self->page;
    PyObject *taken = Py_BuildValue("NNi", self->readings, self->pages, self->busy > 0);
    self->readings = readings, self->pages = pages, self->page = NULL, self->used = 0;
    memcpy(old, self->recent, sizeof old);
    memset(self->recent, 0, sizeof self->recent);
    Py_XDECREF(page); /* only now: what is given up may run code that looks here */
    for (int i = 0; i < RECENT; i++) {
        Py_XDECREF(old[i].anchor);
        Py_XDECREF(old[i].found);
    }
    return taken;
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *dtypes, *layout, *types, *page_of, *image_of, *threads_of;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!OO!OOO", &PyTuple_Type, &dtypes, &layout, &PyTuple_Type, &types,
                          &page_of, &image_of, &threads_of))
        return NULL;
    if (PyTuple_GET_SIZE(dtypes) != DTYPES || PyTuple_GET_SIZE(types) != 2) {
        PyErr_SetString(PyExc_ValueError, "expected four dtypes and two types");
        return NULL;
    }
    PyObject *module = PyType_GetModule(type);
    Reader *self = module ? (Reader *)type->tp_alloc(type, 0) : NULL;
    if (!self)
        return NULL;
    self->dtypes = Py_NewRef(dtypes);
    self->layout = Py_NewRef(layout);
    self->types = Py_NewRef(types);
    self->page_of = Py_NewRef(page_of);
    self->image_of = Py_NewRef(image_of);
    self->threads_of = Py_NewRef(threads_of);
    self->readings = PyList_New(0);
    self->pages = PyList_New(0);
    self->columns_type = PyObject_GetAttrString(module, "Columns");
    if (!self->readings || !self->pages || !self->columns_type)
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* What Python gives must not refer back to the reader: it takes no part in collecting cycles. */
static void reader_free(Reader *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject *held[] = {self->dtypes, self->layout, self->types, self->page_of, self->image_of,
                        self->threads_of, self->page, self->pages, self->readings,
                        self->columns_type};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++)
        Py_XDECREF(held[i]);
    for (int i = 0; i < RECENT; i++) {
        Py_XDECREF(self->recent[i].anchor);
        Py_XDECREF(self->recent[i].found);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef reader_methods[] = {
    {"look", (PyCFunction)(void (*)(void))reader_look, METH_FASTCALL, look_doc},
    {"read", (PyCFunction)(void (*)(void))reader_read, METH_FASTCALL, reader_read_doc},
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
    {Py_tp_doc, "Reads tensors into pages of columns: Reader(dtypes, layout, types, page_of,\n"
                "image_of, threads_of)."},
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_free},
    {Py_tp_methods, reader_methods},
    {Py_tp_members, reader_members},
    {0, NULL},
};

PyType_Spec reader_spec = {
    "shiftscope.tally._native.Reader", sizeof(Reader), 0, Py_TPFLAGS_DEFAULT, reader_slots,
};

int intern_words(void)
{
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!*words[i].word && !(*words[i].word = PyUnicode_InternFromString(words[i].text)))
            return -1;
    return 0;
}
