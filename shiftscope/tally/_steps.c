/* What is asked about all the readings of a step when it ends.

   A step has hundreds of them, and by then none lies in the caches any more: each is looked at as
   seldom as can be. */

#include "_reader.h"

/* The type of the readings in a list, where all are of one compiled type; NULL without an exception
   where they are not. A borrowed reference. */
static PyTypeObject *compiled_type(PyObject *module, PyObject *reading)
{
    const char *const names[] = {"Columns", "Parts"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        PyObject *type = PyObject_GetAttrString(module, names[i]);
        Py_XDECREF(type); /* the module holds it */
        if (!type || (PyObject *)Py_TYPE(reading) == type)
            return (PyTypeObject *)type;
    }
    return NULL;
}

/* Whether a list holds readings of one compiled type; -1 with an exception. */
static int are_readings(PyObject *module, PyObject *list)
{
    Py_ssize_t number = PyList_Check(list) ? PyList_GET_SIZE(list) : -1;
    PyTypeObject *type = number > 0 ? compiled_type(module, PyList_GET_ITEM(list, 0)) : NULL;
    int all = number >= 0 && (number == 0 || type);
    for (Py_ssize_t i = 0; all && i < number; i++)
        all = Py_TYPE(PyList_GET_ITEM(list, i)) == type;
    if (!all && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "expected a list of readings");
    return all ? 1 : -1;
}

static Columns *reading_at(PyObject *readings, Py_ssize_t number)
{
    return (Columns *)PyList_GET_ITEM(readings, number);
}

/* The reading of a write (slot, reading), or NULL where it is no such pair. */
static PyObject *written(PyObject *write)
{
    return PyTuple_Check(write) && PyTuple_GET_SIZE(write) == 2 ? PyTuple_GET_ITEM(write, 1) : NULL;
}

const char only_type_doc[] =
"only_type(writes)\n--\n\n"
"The type of all readings in a list of (slot, reading); None where they are of several.";

PyObject *steps_only_type(PyObject *module, PyObject *writes)
{
    (void)module;
    PyTypeObject *type = NULL;
    if (!PyList_Check(writes)) {
        PyErr_SetString(PyExc_TypeError, "expected a list");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(writes); i++) {
        PyObject *reading = written(PyList_GET_ITEM(writes, i));
        if (!reading) {
            PyErr_SetString(PyExc_TypeError, "expected pairs of slot and reading");
            return NULL;
        }
        if (type && Py_TYPE(reading) != type)
            Py_RETURN_NONE;
        type = Py_TYPE(reading);
    }
    return Py_NewRef(type ? (PyObject *)type : Py_None);
}

const char all_within_doc[] =
"all_within(writes, slots)\n--\n\n"
"Whether a set holds all slots in a list of (slot, reading).";

PyObject *steps_all_within(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    (void)module;
    if (number != 2 || !PyList_Check(args[0]) || !PyAnySet_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "expected a list and a set");
        return NULL;
    }
    int known = 1;
    for (Py_ssize_t i = 0; known == 1 && i < PyList_GET_SIZE(args[0]); i++) {
        PyObject *write = PyList_GET_ITEM(args[0], i);
        if (written(write))
            known = PySet_Contains(args[1], PyTuple_GET_ITEM(write, 0));
        else
            PyErr_SetString(PyExc_TypeError, "expected pairs of slot and reading"), known = -1;
    }
    return known < 0 ? NULL : PyBool_FromLong(known);
}

/* Slots and numbers of what was written; 1 where some of it is not among the readings, -1 with an
   exception. */
static int put_writes(PyObject *writes, PyObject *readings, long long *to)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(writes); i++) {
        PyObject *write = PyList_GET_ITEM(writes, i), *reading = written(write);
        if (!reading || Py_TYPE(reading) != Py_TYPE(PyList_GET_ITEM(readings, 0))) {
            PyErr_SetString(PyExc_TypeError, "expected pairs of slot and reading");
            return -1;
        }
        const long long number = ((Columns *)reading)->number;
        if (number >= PyList_GET_SIZE(readings) || PyList_GET_ITEM(readings, number) != reading)
            return 1;
        const long long slot = PyLong_AsLongLong(PyTuple_GET_ITEM(write, 0));
        if (slot == -1 && PyErr_Occurred())
            return -1;
        *to++ = slot, *to++ = number;
    }
    return 0;
}

const char form_of_doc[] =
"form_of(writes, readings)\n--\n\n"
"What tells steps of one structure from others, as bytes: slots and numbers of the writes\n"
"(slot, reading), in order, and width and dtype of each reading. None where something was written\n"
"that is not among the readings.";

PyObject *steps_form_of(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    if (number != 2 || !PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "expected two lists");
        return NULL;
    }
    PyObject *writes = args[0], *readings = args[1];
    if (are_readings(module, readings) < 0)
        return NULL;
    Py_ssize_t pairs = PyList_GET_SIZE(writes), known = PyList_GET_SIZE(readings);
    if (!known && pairs)
        Py_RETURN_NONE;
    const Py_ssize_t each = 2 * sizeof(long long);
    PyObject *form = PyBytes_FromStringAndSize(NULL, (1 + pairs + known) * each);
    if (!form)
        return NULL;
    long long *to = (long long *)PyBytes_AS_STRING(form);
    *to++ = pairs, *to++ = known;
    int foreign = put_writes(writes, readings, to);
    to += 2 * pairs;
    for (Py_ssize_t i = 0; i < known; i++) {
        const Columns *reading = reading_at(readings, i);
        *to++ = reading->width, *to++ = reading->dtype;
    }
    if (foreign)
        Py_CLEAR(form);
    return foreign > 0 ? Py_NewRef(Py_None) : form;
}

const char add_rows_doc[] =
"add_rows(readings, rows)\n--\n\n"
"Add the rows of each reading to an array of 64-bit integers.";

PyObject *steps_add_rows(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    if (number != 2) {
        PyErr_SetString(PyExc_TypeError, "expected readings and an array");
        return NULL;
    }
    Py_buffer array;
    if (are_readings(module, args[0]) < 0
        || PyObject_GetBuffer(args[1], &array, PyBUF_CONTIG | PyBUF_WRITABLE) < 0)
        return NULL;
    Py_ssize_t known = PyList_GET_SIZE(args[0]);
    int fits = array.len == known * (Py_ssize_t)sizeof(int64_t);
    int64_t *rows = array.buf;
    for (Py_ssize_t i = 0; fits && i < known; i++)
        rows[i] += reading_at(args[0], i)->rows;
    PyBuffer_Release(&array);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "expected as many integers as readings");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* Whether some column holds fewer elements than rows were read. */
static int is_short(const double *count, const Columns *reading)
{
    const double rows = (double)reading->rows;
    int found = 0;
    for (int64_t i = 0; i < reading->width; i++)
        found |= count[i] < rows;
    return found;
}

static int append_number(PyObject *list, Py_ssize_t number)
{
    PyObject *made = PyLong_FromSsize_t(number);
    int failed = made ? PyList_Append(list, made) : -1;
    Py_XDECREF(made);
    return failed;
}

/* Append the numbers of the readings on one page that lost elements; the number behind the last of
   them, or -1 with an exception. */
static Py_ssize_t append_short(PyObject *readings, Py_ssize_t first, const double *count,
                               long long used, PyObject *found)
{
    long long at = 0;
    for (; first < PyList_GET_SIZE(readings); first++) {
        const Columns *reading = reading_at(readings, first);
        if (at + reading->width > used)
            break;
        if (is_short(count + at, reading) && append_number(found, first) < 0)
            return -1;
        at += reading->width;
    }
    return first;
}

const char short_of_doc[] =
"short_of(readings, pages)\n--\n\n"
"Numbers of the readings of which some elements were left out: of some column fewer were counted\n"
"than rows were read. pages: (address, used columns) of the records they fill, in order.";

PyObject *steps_short_of(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    if (number != 2 || !PyList_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "expected readings and pages");
        return NULL;
    }
    PyObject *found = are_readings(module, args[0]) < 0 ? NULL : PyList_New(0);
    Py_ssize_t first = 0;
    for (Py_ssize_t i = 0; found && i < PyList_GET_SIZE(args[1]); i++) {
        PyObject *page = PyList_GET_ITEM(args[1], i);
        long long address, used;
        if (!PyTuple_Check(page))
            PyErr_SetString(PyExc_TypeError, "expected pairs of address and columns");
        else if (PyArg_ParseTuple(page, "LL", &address, &used))
            first = append_short(args[0], first, (const double *)(intptr_t)address, used, found);
        if (PyErr_Occurred())
            Py_CLEAR(found);
    }
    return found;
}
