/* The torch function mode of a forward pass that is recorded. */

#include "_calls.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *handlers, *run;
} Mode;

/* -- one call ------------------------------------------------------------------------------------- */

/* The frame of the innermost module, where its calls have plans; a new reference, or NULL. */
static PyObject *frame_with_plans(PyObject *run)
{
    PyObject *stack = SLOT(run, run_slots, RUN_STACK);
    const Py_ssize_t depth = PyList_GET_SIZE(stack);
    PyObject *frame = depth ? PyList_GET_ITEM(stack, depth - 1) : NULL;
    if (!frame || SLOT(run, run_slots, RUN_RECOMPUTING) != Py_False
        || !Py_IS_TYPE(frame, frame_slots.type)
        || !PyList_CheckExact(SLOT(frame, frame_slots, FRAME_PLANS)))
        return NULL;
    return Py_NewRef(frame);
}

/* The plan of the next call in a frame; a new reference, or NULL. */
static PyObject *plan_in(PyObject *frame, long index)
{
    PyObject *plans = SLOT(frame, frame_slots, FRAME_PLANS);
    return index >= 0 && index < PyList_GET_SIZE(plans)
               ? Py_NewRef(PyList_GET_ITEM(plans, index)) : NULL;
}

/* The books of a recorder that records nothing but moments in this step; NULL where there are
   none, perhaps with an exception. */
static Books *books_of(PyObject *recorder)
{
    int detail = is_true(PyObject_GetAttr(recorder, word_detail));
    PyObject *books = detail ? NULL : PyObject_GetAttr(recorder, word_books);
    if (books && !Py_IS_TYPE(books, books_type))
        Py_CLEAR(books);
    return (Books *)books;
}

/* Move on to the next call of a frame, as it is with this one; -1 with an exception. */
static int move_on(PyObject *frame, PyObject *plan, long index)
{
    PyObject *count = SLOT(plan, plan_slots, PLAN_COUNT);
    if (count != Py_None
        && PyDict_SetItem(SLOT(frame, frame_slots, FRAME_COUNTS), PyTuple_GET_ITEM(count, 0),
                          PyTuple_GET_ITEM(count, 1)) < 0)
        return -1;
    PyObject *next = PyLong_FromLong(index + 1);
    if (!next)
        return -1;
    Py_XSETREF(SLOT(frame, frame_slots, FRAME_INDEX), next);
    return 0;
}

/* End the call of a module whose call ends with its first op. */
static void end_single(PyObject *run, PyObject *frame)
{
    PyObject *stack = SLOT(run, run_slots, RUN_STACK);
    const Py_ssize_t depth = PyList_GET_SIZE(stack);
    if (SLOT(frame, frame_slots, FRAME_SINGLE) != Py_True || !depth
        || PyList_GET_ITEM(stack, depth - 1) != frame)
        return;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    if (PyList_SetSlice(stack, depth - 1, depth, NULL) < 0)
        PyErr_Clear();
    PyErr_Restore(type, value, trace);
}

/* Run and record a call by its plan, if it is the plain one; done tells whether it was. */
static PyObject *run_by_plan(PyObject *run, PyObject *frame, Call *call, int *done)
{
    const long index = PyLong_AsLong(SLOT(frame, frame_slots, FRAME_INDEX));
    PyObject *out = NULL;
    int linear = 0;
    call->plan = plan_in(frame, index);
    call->recorder = Py_NewRef(SLOT(run, run_slots, RUN_RECORDER));
    call->where = Py_NewRef(SLOT(run, run_slots, RUN_WHERE));
    call->books = call->plan && call->plan != Py_None ? books_of(call->recorder) : NULL;
    if (call->books && is_plain(call, &linear) > 0 && move_on(frame, call->plan, index) == 0) {
        *done = 1;
        out = run_plain(call, linear);
    }
    if (*done || PyErr_Occurred())
        end_single(run, frame); /* also where nothing ran, as a comparison raised */
    Py_XDECREF(call->plan);
    Py_DECREF(call->recorder);
    Py_DECREF(call->where);
    Py_XDECREF(call->books);
    return out;
}

/* A call that has a handler: by its plan, else by Python. */
static PyObject *handle(Mode *self, PyObject *handler, Call *call)
{
    int done = 0, transformed = is_transformed();
    PyObject *frame = transformed ? NULL : frame_with_plans(self->run), *out = NULL;
    if (frame)
        out = run_by_plan(self->run, frame, call, &done);
    Py_XDECREF(frame);
    if (out || done || PyErr_Occurred())
        return out;
    PyObject *kwargs = call->kwargs ? Py_NewRef(call->kwargs) : PyDict_New();
    out = kwargs ? PyObject_CallMethodObjArgs((PyObject *)self, word_handle, handler, call->func,
                                              call->args, kwargs, NULL) : NULL;
    Py_XDECREF(kwargs);
    return out;
}

/* Whether the trail of the pass is to be told of a call; -1 with an exception. */
static int leaves_trail(PyObject *trail, PyObject *out)
{
    if (PyDict_GET_SIZE(SLOT(trail, trail_slots, TRAIL_TENSORS))
        || !Py_IS_TYPE(out, (PyTypeObject *)known.tensor))
        return 1;
    return is_true(PyObject_GetAttr(out, word_is_leaf)); /* as telling as grad_fn, and cheaper */
}

/* Tell the trail; what the call returned, or NULL. */
static PyObject *followed(PyObject *run, const Call *call, PyObject *out)
{
    PyObject *trail = Py_NewRef(SLOT(run, run_slots, RUN_TRAIL));
    int failed = leaves_trail(trail, out);
    if (failed > 0) {
        PyObject *kwargs = call->kwargs ? Py_NewRef(call->kwargs) : PyDict_New();
        PyObject *told = kwargs ? PyObject_CallMethodObjArgs(trail, word_follow, call->func,
                                                             call->args, kwargs, out, NULL) : NULL;
        failed = told ? 0 : -1;
        Py_XDECREF(kwargs);
        Py_XDECREF(told);
    }
    Py_DECREF(trail);
    if (failed < 0)
        Py_CLEAR(out);
    return out;
}

/* -- modes that outlive their pass ----------------------------------------------------------------- */

static PyObject *take_off; /* takes modes off the stack whose forward pass has ended */

PyObject *when_stale(PyObject *self, PyObject *function)
{
    (void)self;
    Py_XSETREF(take_off, Py_NewRef(function));
    Py_RETURN_NONE;
}

static int take_off_soon(void *ignored)
{
    (void)ignored;
    PyObject *told = take_off ? PyObject_CallNoArgs(take_off) : NULL;
    Py_XDECREF(told);
    return take_off && !told ? -1 : 0;
}

/* A mode is off the stack while it runs: it cannot take itself off. The interpreter does, soon. */
static void end_if_stale(PyObject *run)
{
    if (!PyList_GET_SIZE(SLOT(run, run_slots, RUN_STACK)))
        Py_AddPendingCall(take_off_soon, NULL);
}

/* -- every call ------------------------------------------------------------------------------------ */

PyDoc_STRVAR(function_doc,
"__torch_function__($self, func, types, args=(), kwargs=None, /)\n--\n\n"
"One call of a torch function.");

static PyObject *mode_function(Mode *self, PyObject *const *args, Py_ssize_t number)
{
    if (number < 2 || number > 4 || (number > 2 && !PyTuple_CheckExact(args[2]))
        || (number > 3 && args[3] != Py_None && !PyDict_Check(args[3]))) {
        PyErr_SetString(PyExc_TypeError, "expected func, types, args and kwargs");
        return NULL;
    }
    if (!self->handlers || !self->run) {
        PyErr_SetString(PyExc_TypeError, "a mode that was never made by __init__");
        return NULL;
    }
    PyObject *given = number > 2 ? Py_NewRef(args[2]) : PyTuple_New(0);
    PyObject *handler = given ? PyDict_GetItemWithError(self->handlers, args[0]) : NULL, *out = NULL;
    Call call = {.func = args[0], .args = given};
    call.kwargs = number > 3 && args[3] != Py_None ? args[3] : NULL;
    if (handler) {
        Py_INCREF(handler);
        out = handle(self, handler, &call);
        Py_DECREF(handler);
    } else if (!PyErr_Occurred())
        out = PyObject_Call(call.func, given, call.kwargs);
    if (out)
        out = followed(self->run, &call, out);
    Py_XDECREF(given);
    end_if_stale(self->run); /* last: Python code that runs before finds the mode off the stack */
    return out;
}

/* -- the type ------------------------------------------------------------------------------------- */

static int mode_init(Mode *self, PyObject *args, PyObject *kwargs)
{
    PyObject *handlers, *run;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!O!", &PyDict_Type, &handlers, run_slots.type, &run))
        return -1;
    Py_XSETREF(self->handlers, Py_NewRef(handlers));
    Py_XSETREF(self->run, Py_NewRef(run));
    return 0;
}

static int mode_traverse(Mode *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->handlers);
    Py_VISIT(self->run);
    return 0;
}

static int mode_clear(Mode *self)
{
    Py_CLEAR(self->handlers);
    Py_CLEAR(self->run);
    return 0;
}

static void mode_free(Mode *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    mode_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef mode_methods[] = {
    {"__torch_function__", (PyCFunction)(void (*)(void))mode_function, METH_FASTCALL, function_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef mode_members[] = {
    {"handlers", T_OBJECT_EX, offsetof(Mode, handlers), READONLY, "Function to its handler."},
    {"run", T_OBJECT_EX, offsetof(Mode, run), READONLY, "The forward pass it is in force for."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot mode_slots[] = {
    {Py_tp_doc, "Hands the torch functions that matter to their plans: Mode(handlers, run)."},
    {Py_tp_init, mode_init},
    {Py_tp_dealloc, mode_free},
    {Py_tp_traverse, mode_traverse},
    {Py_tp_clear, mode_clear},
    {Py_tp_methods, mode_methods},
    {Py_tp_members, mode_members},
    {0, NULL},
};

PyType_Spec mode_spec = {
    "shiftscope.capture._calls.Mode", sizeof(Mode), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, mode_slots,
};
