/* Launching a compiled kernel by the driver, with arguments that are known but for a few.

   Triton's own launcher parses its arguments anew each time, behind some Python; for the small
   tensors of most networks that takes longer than all the rest of reading them. */

#include "_native.h"

#include <structmember.h>

#define MOST 24 /* arguments of a kernel */

/* cuLaunchKernel: function, grid, block, bytes of shared memory, stream, arguments, nothing. */
typedef int (*Driver)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                      void *, void **, void **);

struct Launch {
    PyObject_HEAD
    Driver driver;
    void *function;
    unsigned grid[3], threads, shared;
    int number;           /* of arguments */
    char codes[MOST + 1]; /* what each is: see launch_new */
    int64_t values[MOST];
    int dims, form[3];
    int64_t shape[DIMS], residue;
    Extent extent;
    PyObject *owner; /* keeps the function loaded */
};

Extent extent_of(const Launch *launch) { return launch->extent; }

int launch_fits(const Launch *launch, const Seen *seen, const int form[3], int64_t address)
{
    return !memcmp(launch->form, form, sizeof launch->form) && address % 16 == launch->residue
           && seen->dims == launch->dims
           && !memcmp(launch->shape, seen->shape, (size_t)launch->dims * sizeof *seen->shape);
}

int launch_kernel(const Launch *launch, const Reading *reading, int64_t stream)
{
    int64_t values[MOST];
    void *places[MOST];
    for (int i = 0; i < launch->number; i++) {
        switch (launch->codes[i]) {
        case 'x': values[i] = reading->address; break;
        case 'p': values[i] = reading->page; break;
        case 'm': values[i] = reading->image ? reading->image : reading->page; break;
        case 'c': values[i] = reading->capacity; break;
        case 'o': values[i] = reading->offset; break;
        default: values[i] = launch->values[i];
        }
        places[i] = &values[i]; /* of a shorter argument the lowest bytes, which come first */
    }
    int code;
    const unsigned *grid = launch->grid;
    Py_BEGIN_ALLOW_THREADS /* a full queue of the device is waited for */
    code = launch->driver(launch->function, grid[0], grid[1], grid[2], launch->threads, 1, 1,
                          launch->shared, (void *)(intptr_t)stream, places, NULL);
    Py_END_ALLOW_THREADS
    return code;
}

/* Integers of a tuple; their number, or -1 with an exception. */
static int integers_of(PyObject *tuple, int64_t *to, int most)
{
    Py_ssize_t number = PyTuple_GET_SIZE(tuple);
    if (number > most) {
        PyErr_SetString(PyExc_ValueError, "too many dimensions or arguments");
        return -1;
    }
    for (Py_ssize_t i = 0; i < number; i++)
        to[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
    return PyErr_Occurred() ? -1 : (int)number;
}

static PyObject *launch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    long long driver, function, residue;
    unsigned grid[3], threads, shared;
    const char *codes;
    Py_ssize_t number;
    PyObject *values, *shape, *owner;
    int form[3];
    Extent extent;
    long long width, rows, parts, run;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "LL(III)IIs#O!O!(iii)L(LLLL)O", &driver, &function, &grid[0],
                          &grid[1], &grid[2], &threads, &shared, &codes, &number, &PyTuple_Type,
                          &values, &PyTuple_Type, &shape, &form[0], &form[1], &form[2], &residue,
                          &width, &rows, &parts, &run, &owner))
        return NULL;
    extent = (Extent){width, rows, parts, run};
    if (!driver || number > MOST || PyTuple_GET_SIZE(values) != number || width < 1 || parts < 1) {
        PyErr_SetString(PyExc_ValueError, "expected a driver, and as many values as codes");
        return NULL;
    }
    Launch *self = (Launch *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->driver = (Driver)(intptr_t)driver, self->function = (void *)(intptr_t)function;
    memcpy(self->grid, grid, sizeof grid);
    self->threads = threads, self->shared = shared, self->number = (int)number;
    memcpy(self->codes, codes, (size_t)number);
    memcpy(self->form, form, sizeof form);
    self->residue = residue, self->extent = extent, self->owner = Py_NewRef(owner);
    self->dims = integers_of(shape, self->shape, DIMS);
    if (self->dims < 0 || integers_of(values, self->values, MOST) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void launch_free(Launch *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->owner);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(launch_doc,
"Launch(driver, function, grid, threads, shared, codes, values, shape, form, residue, extent,\n"
"owner)\n\n"
"A kernel that reads tensors of one form: shape, (number of the dtype, kind, whether with image)\n"
"and rest of the address by 16. driver is the address of cuLaunchKernel. Of each argument the code\n"
"tells what it is: x the tensor, p the page, m the mean image, c the capacity of the page, o the\n"
"first column; any other one is the value. extent: neurons, rows, parts, places of the image.\n"
"owner: what keeps the function loaded.");

static PyType_Slot launch_slots[] = {
    {Py_tp_doc, (void *)launch_doc},
    {Py_tp_new, launch_new},
    {Py_tp_dealloc, launch_free},
    {0, NULL},
};

PyType_Spec launch_spec = {
    "shiftscope.tally._native.Launch", sizeof(Launch), 0, Py_TPFLAGS_DEFAULT, launch_slots,
};
