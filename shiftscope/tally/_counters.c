/* The counters of a site, and the events of a step that raise them. */

#include "_native.h"

#include <limits.h>
#include <structmember.h>

enum { RAISED = 6 }; /* counters that an event raises by one */

typedef struct {
    PyObject_HEAD
    long long raised[RAISED], samples, forward;
} Counters;

#define RAISED_AT(i) (offsetof(Counters, raised) + (i) * sizeof(long long))

static PyMemberDef counters_members[] = {
    {"calls", T_LONGLONG, RAISED_AT(0), 0, "Calls of the op."},
    {"hooked", T_LONGLONG, RAISED_AT(1), 0, "Those whose gradients are waited for."},
    {"arrived", T_LONGLONG, RAISED_AT(2), 0, "Those whose gradients came."},
    {"shares_due", T_LONGLONG, RAISED_AT(3), 0, "Those whose input had a gradient to come."},
    {"shares", T_LONGLONG, RAISED_AT(4), 0, "Those whose input got one."},
    {"repeated", T_LONGLONG, RAISED_AT(5), 0, "Those in more than one backward pass."},
    {"samples", T_LONGLONG, offsetof(Counters, samples), 0, "Samples of all forward passes."},
    {"forward", T_LONGLONG, offsetof(Counters, forward), 0, "Number of the last; -1 for none."},
    {NULL, 0, 0, 0, NULL},
};

/* The arguments are those of the heir, who is made by __init__. */
static PyObject *counters_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args, (void)kwargs;
    Counters *self = (Counters *)type->tp_alloc(type, 0);
    if (self)
        self->forward = -1;
    return (PyObject *)self;
}

static PyType_Slot counters_slots[] = {
    {Py_tp_doc, "What is counted at a site."},
    {Py_tp_new, counters_new},
    {Py_tp_members, counters_members},
    {0, NULL},
};

PyType_Spec counters_spec = {
    "shiftscope.tally._native.Counters", sizeof(Counters), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, counters_slots,
};

/* -- events -------------------------------------------------------------------------------------- */

/* An event (counters, what, where): what it raises, one bit for each counter, and its forward pass
   (number, samples) unless where is None. */
typedef struct {
    Counters *site;
    long raises;
    int called;
    long long number, samples;
} Event;

/* What it tells; 0 where it cannot be understood here, perhaps with an exception. */
static int parse_event(PyObject *given, PyTypeObject *type, PyObject *table, Event *event)
{
    if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) != 3
        || !PyObject_TypeCheck(PyTuple_GET_ITEM(given, 0), type)
        || !PyUnicode_CheckExact(PyTuple_GET_ITEM(given, 1)))
        return 0;
    PyObject *bits = PyDict_GetItemWithError(table, PyTuple_GET_ITEM(given, 1));
    PyObject *where = PyTuple_GET_ITEM(given, 2);
    if (!bits)
        return 0;
    event->site = (Counters *)PyTuple_GET_ITEM(given, 0);
    event->raises = PyLong_AsLong(bits);
    event->called = where != Py_None;
    if (event->called) {
        if (!PyTuple_Check(where) || PyTuple_GET_SIZE(where) != 2)
            return 0;
        event->number = PyLong_AsLongLong(PyTuple_GET_ITEM(where, 0));
        event->samples = PyLong_AsLongLong(PyTuple_GET_ITEM(where, 1));
    }
    return !PyErr_Occurred();
}

/* Whether the forward passes of all events come one after another, and after those before. */
static int in_order(PyObject *events, PyTypeObject *type, PyObject *table)
{
    long long last = LLONG_MIN;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(events); i++) {
        Event event;
        if (!parse_event(PyList_GET_ITEM(events, i), type, table, &event))
            return 0;
        if (!event.called)
            continue;
        if (event.number < last || event.number < event.site->forward)
            return 0;
        last = event.number;
    }
    return 1;
}

static void count_event(const Event *event)
{
    Counters *site = event->site;
    for (int i = 0; i < RAISED; i++)
        site->raised[i] += event->raises >> i & 1;
    if (event->called && site->forward != event->number) {
        site->forward = event->number;
        site->samples += event->samples;
    }
}

const char count_doc[] =
"count(events, table)\n--\n\n"
"Raise the counters of sites by events (counters, what, where), where table has the counters of\n"
"each kind as bits; samples once for each forward pass. False, and nothing is counted, where the\n"
"passes do not come in order, or an event is not understood.";

PyObject *counters_count(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    if (number != 2 || !PyList_Check(args[0]) || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "expected events and a table");
        return NULL;
    }
    PyTypeObject *type = (PyTypeObject *)PyObject_GetAttrString(module, "Counters");
    int counted = type && in_order(args[0], type, args[1]);
    for (Py_ssize_t i = 0; counted && i < PyList_GET_SIZE(args[0]); i++) {
        Event event;
        counted = parse_event(PyList_GET_ITEM(args[0], i), type, args[1], &event);
        if (counted)
            count_event(&event);
    }
    Py_XDECREF(type);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(counted);
}
