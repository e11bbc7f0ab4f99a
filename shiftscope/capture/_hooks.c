/* The lists of a recorder, and the hooks on autograd nodes that write to them. */

#include "_calls.h"

#include <structmember.h>

/* -- books ---------------------------------------------------------------------------------------- */

static PyObject *books_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *pending, *events, *looks, *imaged;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!O!O!O!", &PyList_Type, &pending, &PyList_Type, &events,
                          &PyList_Type, &looks, &PyList_Type, &imaged))
        return NULL;
    Books *self = (Books *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->pending = Py_NewRef(pending);
    self->events = Py_NewRef(events);
    self->looks = Py_NewRef(looks);
    self->imaged = Py_NewRef(imaged);
    return (PyObject *)self;
}

/* What the lists hold must not refer back to them: books take no part in collecting cycles. */
static void books_free(Books *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->pending);
    Py_XDECREF(self->events);
    Py_XDECREF(self->looks);
    Py_XDECREF(self->imaged);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot books_slots[] = {
    {Py_tp_doc, "The lists of a recorder: Books(pending, events, looks, imaged)."},
    {Py_tp_new, books_new},
    {Py_tp_dealloc, books_free},
    {0, NULL},
};

PyType_Spec books_spec = {
    "shiftscope.capture._calls.Books", sizeof(Books), 0, Py_TPFLAGS_DEFAULT, books_slots,
};

PyObject *look_at(Books *books, PyObject *recorder, PyObject *slot, PyObject *x, PyObject *kind)
{
    PyObject *image = PyList_GetItem(books->imaged, PyLong_AsSsize_t(slot));
    if (!image)
        return NULL;
    PyObject *const args[] = {x, slot, kind, Py_NewRef(image)};
    PyObject *found = Py_NewRef(Py_None);
    for (Py_ssize_t i = 0; found == Py_None && i < PyList_GET_SIZE(books->looks); i++) {
        PyObject *look = Py_NewRef(PyList_GET_ITEM(books->looks, i));
        Py_SETREF(found, PyObject_Vectorcall(look, args, 4, NULL));
        Py_DECREF(look);
    }
    Py_DECREF(image);
    if (found && found != Py_None)
        return found;
    if (!found) {
        if (!PyErr_ExceptionMatches(known.out_of_memory))
            return NULL;
        PyErr_Clear(); /* others may need less */
    }
    Py_XDECREF(found);
    return PyObject_CallMethodObjArgs(recorder, word_otherwise, slot, x, kind, NULL);
}

int write_down(Books *books, PyObject *slot, PyObject *reading)
{
    if (reading == Py_None)
        return 0;
    PyObject *written = PyTuple_Pack(2, slot, reading);
    int failed = written ? PyList_Append(books->pending, written) : -1;
    Py_XDECREF(written);
    return failed;
}

int tell(Books *books, PyObject *state, PyObject *what, PyObject *where)
{
    PyObject *event = PyTuple_Pack(3, state, what, where);
    int failed = event ? PyList_Append(books->events, event) : -1;
    Py_XDECREF(event);
    return failed;
}

/* -- hooks on nodes ------------------------------------------------------------------------------- */

/* Post hook on the node of a call: the gradient of its output, and its own share at the input. It
   holds neither tensor nor node, and never changes a gradient. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *recorder, *epoch, *plan; /* the recorder by a weak reference */
    Books *books;
    long index; /* of the share among the gradients of the inputs; -1 for none */
    int linear, fired;
} Hook;

/* Whether the step of the call still runs; -1 with an exception. */
static int is_open(const Hook *self, PyObject *recorder)
{
    PyObject *epoch = PyObject_GetAttr(recorder, word_epoch);
    int same = epoch ? PyObject_RichCompareBool(epoch, self->epoch, Py_EQ) : -1;
    Py_XDECREF(epoch);
    return same;
}

/* Read a gradient and write it down; -1 with an exception. */
static int take(const Hook *self, PyObject *recorder, PyObject *slot, PyObject *grad,
                PyObject *kind)
{
    PyObject *reading = look_at(self->books, recorder, slot, grad, kind);
    int failed = reading ? write_down(self->books, slot, reading) : -1;
    Py_XDECREF(reading);
    return failed;
}

static int take_both(const Hook *self, PyObject *recorder, PyObject *grad, PyObject *share)
{
    PyObject *plan = self->plan;
    if (self->linear) {
        PyObject *slot = self->index < 0 ? SLOT(plan, linear_slots, LINEAR_GRAD_ALONE)
                                         : SLOT(plan, plan_slots, PLAN_GRAD_Z);
        if (take(self, recorder, slot, grad, SLOT(plan, linear_slots, LINEAR_Z_KIND)) < 0)
            return -1;
        return share ? take(self, recorder, SLOT(plan, plan_slots, PLAN_GRAD_A), share,
                            SLOT(plan, linear_slots, LINEAR_X_KIND))
                     : 0;
    }
    PyObject *kind = SLOT(plan, activation_slots, ACTIVATION_KIND);
    if (take(self, recorder, SLOT(plan, plan_slots, PLAN_GRAD_A), grad, kind) < 0)
        return -1;
    return share ? take(self, recorder, SLOT(plan, plan_slots, PLAN_GRAD_Z), share, kind) : 0;
}

/* What a gradient that came to a call counts as. */
static PyObject *arrival(const Hook *self, PyObject *share)
{
    if (self->fired)
        return word_repeated;
    return self->index < 0 ? word_arrived : share ? word_shared : word_due;
}

static PyObject *hook_call(Hook *self, PyObject *const *args, size_t flags, PyObject *names)
{
    if (PyVectorcall_NARGS(flags) != 2 || names || !PyTuple_Check(args[0])
        || !PyTuple_Check(args[1]) || !PyTuple_GET_SIZE(args[1])) {
        PyErr_SetString(PyExc_TypeError, "expected the gradients of inputs and outputs");
        return NULL;
    }
    PyObject *grad = PyTuple_GET_ITEM(args[1], 0), *share = NULL;
    PyObject *recorder = grad == Py_None ? NULL : referent(self->recorder);
    if (!recorder)
        Py_RETURN_NONE;
    int open = is_open(self, recorder);
    if (open > 0 && self->index >= PyTuple_GET_SIZE(args[0])) {
        PyErr_SetString(PyExc_IndexError, "fewer inputs than the plan of the call knows");
        open = -1;
    }
    if (open > 0 && self->index >= 0 && PyTuple_GET_ITEM(args[0], self->index) != Py_None)
        share = PyTuple_GET_ITEM(args[0], self->index);
    if (open > 0 && tell(self->books, SLOT(self->plan, plan_slots, PLAN_STATE),
                         arrival(self, share), Py_None) < 0)
        open = -1;
    if (open > 0) {
        self->fired = 1;
        open = take_both(self, recorder, grad, share);
    }
    Py_DECREF(recorder);
    if (open < 0)
        return NULL;
    Py_RETURN_NONE;
}

int put_hook(Books *books, PyObject *recorder, PyObject *plan, PyObject *node, long index,
             int linear)
{
    PyObject *itself = PyObject_GetAttr(recorder, word_itself);
    PyObject *epoch = itself ? PyObject_GetAttr(recorder, word_epoch) : NULL;
    Hook *hook = epoch ? PyObject_New(Hook, hook_type) : NULL;
    if (!hook) {
        Py_XDECREF(itself);
        Py_XDECREF(epoch);
        return -1;
    }
    hook->call = (vectorcallfunc)hook_call;
    hook->recorder = itself, hook->epoch = epoch, hook->plan = Py_NewRef(plan);
    hook->books = (Books *)Py_NewRef((PyObject *)books);
    hook->index = index, hook->linear = linear, hook->fired = 0;
    PyObject *handle = PyObject_CallMethodOneArg(node, word_register_hook, (PyObject *)hook);
    Py_DECREF(hook);
    Py_XDECREF(handle);
    return handle ? 0 : -1;
}

static void hook_free(Hook *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->recorder);
    Py_XDECREF(self->epoch);
    Py_XDECREF(self->plan);
    Py_XDECREF(self->books);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef hook_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Hook, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot hook_type_slots[] = {
    {Py_tp_doc, "Post hook on the autograd node of a call."},
    {Py_tp_dealloc, hook_free},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_members, hook_members},
    {0, NULL},
};

PyType_Spec hook_spec = {
    "shiftscope.capture._calls.Hook", sizeof(Hook), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    hook_type_slots,
};
