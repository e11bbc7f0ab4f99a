/* The compiled part of shiftscope.tally as a Python module: see native.py. */

#include "_native.h"

#define UNLOCKED (1 << 16) /* elements from which on the interpreter lock is released */

/* -- functions ----------------------------------------------------------------------------------- */

static int integers(PyObject *const *given, Py_ssize_t number, Py_ssize_t expected, int64_t *to)
{
    if (number != expected) {
        PyErr_Format(PyExc_TypeError, "expected %zd integers, got %zd", expected, number);
        return -1;
    }
    for (Py_ssize_t i = 0; i < number; i++) {
        to[i] = PyLong_AsLongLong(given[i]);
        if (to[i] == -1 && PyErr_Occurred())
            return -1;
    }
    return 0;
}

Moments record(int64_t address, int64_t capacity, int64_t offset)
{
    double *base = (double *)(intptr_t)address + offset;
    return (Moments){base, base + capacity, base + 2 * capacity};
}

int read_source(const Source *x, Moments to, double *image, int64_t threads)
{
    int failed;
    if (x->rows * x->width * x->run < UNLOCKED)
        failed = read_moments(x, to, image, 1);
    else {
        Py_BEGIN_ALLOW_THREADS
        failed = read_moments(x, to, image, threads);
        Py_END_ALLOW_THREADS
    }
    if (failed)
        PyErr_NoMemory();
    return failed;
}

PyDoc_STRVAR(read_doc,
"read(data, dtype, rows, width, run, record, capacity, offset, image, threads)\n--\n\n"
"Write count, mean and sum of squared deviations of each column of [rows, width, run] to columns\n"
"offset ... offset + width of record [3, capacity] (float64); with an address for image\n"
"[width, run], also the mean over rows there.");

static PyObject *native_read(PyObject *self, PyObject *const *args, Py_ssize_t number)
{
    int64_t v[10];
    (void)self;
    if (integers(args, number, 10, v) < 0)
        return NULL;
    Source x = {(const char *)(intptr_t)v[0], (int)v[1], v[2], v[3], v[4]};
    if (v[1] < 0 || v[1] >= DTYPES || x.rows < 1 || x.width < 1 || x.run < 1 || !v[0] || !v[5]) {
        PyErr_SetString(PyExc_ValueError, "expected one of the four dtypes and sizes from 1");
        return NULL;
    }
    if (v[7] < 0 || v[7] > v[6] - x.width) {
        PyErr_SetString(PyExc_ValueError, "the columns lie outside of the record");
        return NULL;
    }
    if (read_source(&x, record(v[5], v[6], v[7]), (double *)(intptr_t)v[8], v[9]))
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(merge_doc,
"merge(record, capacity, other, other_capacity, columns, drift)\n--\n\n"
"Merge the first columns of another record into the first ones of a record, by Chan's rule; without\n"
"drift, how far apart the means of both lie does not count as deviation.");

static PyObject *native_merge(PyObject *self, PyObject *const *args, Py_ssize_t number)
{
    int64_t v[6];
    (void)self;
    if (integers(args, number, 6, v) < 0)
        return NULL;
    if (!v[0] || !v[2] || v[4] < 0 || v[4] > v[1] || v[4] > v[3]) {
        PyErr_SetString(PyExc_ValueError, "the columns lie outside of a record");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    merge_moments(v[4], v[5] != 0, record(v[0], v[1], 0), record(v[2], v[3], 0));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* -- the module ---------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"read", (PyCFunction)(void (*)(void))native_read, METH_FASTCALL, read_doc},
    {"merge", (PyCFunction)(void (*)(void))native_merge, METH_FASTCALL, merge_doc},
    {"only_type", steps_only_type, METH_O, only_type_doc},
    {"all_within", (PyCFunction)(void (*)(void))steps_all_within, METH_FASTCALL, all_within_doc},
    {"form_of", (PyCFunction)(void (*)(void))steps_form_of, METH_FASTCALL, form_of_doc},
    {"add_rows", (PyCFunction)(void (*)(void))steps_add_rows, METH_FASTCALL, add_rows_doc},
    {"short_of", (PyCFunction)(void (*)(void))steps_short_of, METH_FASTCALL, short_of_doc},
    {"count", (PyCFunction)(void (*)(void))counters_count, METH_FASTCALL, count_doc},
    {NULL, NULL, 0, NULL},
};

static int add_type(PyObject *module, const char *name, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int failed = type ? PyModule_AddObjectRef(module, name, type) : -1;
    Py_XDECREF(type);
    return failed;
}

static int module_exec(PyObject *module)
{
    if (intern_words() < 0)
        return -1;
    if (add_type(module, "Columns", &columns_spec) < 0 || add_type(module, "Parts", &parts_spec) < 0)
        return -1;
    if (add_type(module, "Launch", &launch_spec) < 0)
        return -1;
    if (add_type(module, "Counters", &counters_spec) < 0)
        return -1;
    return add_type(module, "Reader", &reader_spec);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "Moments of the columns of dense tensors, in one pass over memory.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&module); }
