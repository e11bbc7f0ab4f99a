/* The books of a step: columns of pages, what stands in them, and which tensors were just read. */

#include "_reader.h"

#include <structmember.h>

/* -- Columns ------------------------------------------------------------------------------------- */

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
    {"offset", T_LONGLONG, offsetof(Columns, offset), READONLY, "Column of its page it begins at."},
    {"parts", T_LONGLONG, offsetof(Columns, parts), READONLY, "Runs of columns to be merged."},
    {"dtype", T_INT, offsetof(Columns, dtype), READONLY, "Number of the tensor's dtype."},
    {"image", T_OBJECT, offsetof(Columns, image), 0,
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

PyType_Spec parts_spec = {
    "shiftscope.tally._native.Parts", sizeof(Columns), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, columns_slots,
};

/* -- tensors that were just read ------------------------------------------------------------------ */

/* Whether a weak reference refers to an object that is alive. */
static int refers_to(PyObject *reference, PyObject *object)
{
    PyObject *found = referent(reference);
    Py_XDECREF(found); /* only compared with one that is alive */
    return found == object;
}

PyObject *recall(Reader *self, PyObject *anchor, long long version, const long long place[6])
{
    unsigned long thread = PyThread_get_thread_ident();
    for (int i = 1; i <= RECENT; i++) {
        Entry *entry = &self->recent[(self->next + RECENT - i) % RECENT];
        if (entry->anchor && entry->version == version && entry->thread == thread
            && refers_to(entry->anchor, anchor) && !memcmp(entry->place, place, sizeof entry->place))
            return entry->found;
    }
    return NULL;
}

int remember(Reader *self, PyObject *anchor, long long version, const long long place[6],
             PyObject *found)
{
    PyObject *reference = PyWeakref_NewRef(anchor, NULL);
    if (!reference)
        return -1;
    const long long number = ((Columns *)found)->number;
    if (number >= PyList_GET_SIZE(self->readings)
        || PyList_GET_ITEM(self->readings, number) != found) {
        Py_DECREF(reference); /* of a step that another thread has ended meanwhile */
        return 0;
    }
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

/* -- pages ---------------------------------------------------------------------------------------- */

/* Tell a page how many of its columns are taken. May run Python code, as all of its attributes. */
static int set_used(PyObject *page, long long number)
{
    PyObject *used = PyLong_FromLongLong(number);
    int failed = used ? PyObject_SetAttrString(page, "used", used) : -1;
    Py_XDECREF(used);
    return failed;
}

static int turn_page(Reader *self, int64_t width)
{
    PyObject *page = PyObject_CallFunction(self->page_of, "L", (long long)width);
    int64_t address = page ? integer(PyObject_GetAttrString(page, "address")) : 0;
    int64_t capacity = page && !PyErr_Occurred() ? integer(PyObject_GetAttrString(page, "capacity"))
                                                 : 0;
    if (!PyErr_Occurred() && (capacity < width || !address))
        PyErr_SetString(PyExc_ValueError, "the new page is too small");
    if (PyErr_Occurred() || PyList_Append(self->pages, page) < 0) {
        Py_XDECREF(page);
        return -1;
    }
    PyObject *full = self->page;
    const long long used = self->used;
    self->page = page, self->address = address, self->capacity = capacity, self->used = 0;
    int failed = full ? set_used(full, used) : 0;
    Py_XDECREF(full);
    return failed;
}

/* Whether there is room for some more columns, on a new page from Python where this one is full.
   That may run other code that looks here: only what follows without any is of one piece. */
static int make_room(Reader *self, int64_t width)
{
    while (!self->page || self->used > self->capacity - width)
        if (turn_page(self, width) < 0)
            return -1;
    return 0;
}

Columns *next_reading(Reader *self, long long slot, const Extent *extent, int dtype)
{
    const int64_t columns = extent->width * extent->parts;
    Columns *made = PyObject_New(Columns, (PyTypeObject *)self->columns_type);
    if (!made)
        return NULL;
    made->slot = slot, made->width = extent->width, made->rows = extent->rows;
    made->parts = extent->parts, made->dtype = dtype, made->image = NULL;
    if (make_room(self, columns) < 0) {
        Py_DECREF(made);
        return NULL;
    }
    made->number = PyList_GET_SIZE(self->readings), made->offset = self->used;
    if (PyList_Append(self->readings, (PyObject *)made) < 0)
        Py_CLEAR(made);
    else
        self->used += columns;
    return made;
}

const char reserve_doc[] =
"reserve(slot, width, rows, parts, dtype)\n--\n\n"
"Columns that somebody else writes, and the page they lie on; call done() when they are written.";

PyObject *reader_reserve(Reader *self, PyObject *args)
{
    long long slot, width, rows, parts;
    int dtype;
    if (!PyArg_ParseTuple(args, "LLLLi", &slot, &width, &rows, &parts, &dtype))
        return NULL;
    if (width < 1 || parts < 1 || width > INT32_MAX / parts || dtype < 0 || dtype >= DTYPES) {
        PyErr_SetString(PyExc_ValueError, "expected sizes from 1 and one of the four dtypes");
        return NULL;
    }
    const Extent extent = {width, rows, parts, 1};
    Columns *made = next_reading(self, slot, &extent, dtype);
    if (!made)
        return NULL;
    PyObject *page = Py_NewRef(self->page);
    self->busy++;
    return Py_BuildValue("NN", made, page);
}

PyObject *reader_done(Reader *self, PyObject *ignored)
{
    (void)ignored;
    if (self->busy > 0)
        self->busy--;
    Py_RETURN_NONE;
}

const char take_doc[] =
"take()\n--\n\n"
"All readings, the pages they lie in, and whether some thread is still reading; none are left.";

PyObject *reader_take(Reader *self, PyObject *ignored)
{
    (void)ignored;
    PyObject *readings = PyList_New(0), *pages = PyList_New(0), *taken = PyTuple_New(3);
    if (!readings || !pages || !taken) {
        Py_XDECREF(readings);
        Py_XDECREF(pages);
        Py_XDECREF(taken);
        return NULL;
    }
    /* All at once: whatever is made or given up here may run code that looks here. */
    PyObject *page = self->page;
    const long long used = self->used;
    Entry old[RECENT];
    memcpy(old, self->recent, sizeof old);
    memset(self->recent, 0, sizeof self->recent);
    PyTuple_SET_ITEM(taken, 0, self->readings);
    PyTuple_SET_ITEM(taken, 1, self->pages);
    PyTuple_SET_ITEM(taken, 2, PyBool_FromLong(self->busy > 0));
    self->readings = readings, self->pages = pages, self->page = NULL, self->used = 0;
    if (page && set_used(page, used) < 0)
        Py_CLEAR(taken);
    Py_XDECREF(page);
    for (int i = 0; i < RECENT; i++) {
        Py_XDECREF(old[i].anchor);
        Py_XDECREF(old[i].found);
    }
    return taken;
}
