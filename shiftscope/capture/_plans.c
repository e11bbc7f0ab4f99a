/* Calls whose plan is known and asks for nothing that only Python can do. */

#include "_calls.h"

/* -- is it the call that is known? ---------------------------------------------------------------- */

/* A small integer in a slot; -1 with an exception where there is none. */
static long number_in(PyObject *value)
{
    if (value)
        return PyLong_AsLong(value);
    PyErr_SetString(PyExc_AttributeError, "a plan without a number");
    return -1;
}

/* Whether an attribute of a tensor is this very object; -1 with an exception. */
static int attribute_is(PyObject *x, PyObject *word, PyObject *wanted)
{
    PyObject *found = PyObject_GetAttr(x, word);
    Py_XDECREF(found); /* dtypes, layouts and kin live as long as torch does */
    return found ? found == wanted : -1;
}

static int has_form(PyObject *x, PyObject *plan)
{
    if (!Py_IS_TYPE(x, (PyTypeObject *)known.tensor))
        return 0;
    int same = attribute_is(x, word_dtype, SLOT(plan, plan_slots, PLAN_DTYPE));
    if (same > 0)
        same = attribute_is(x, word_layout, known.strided);
    if (same > 0) {
        int nested = is_true(PyObject_GetAttr(x, word_is_nested));
        same = nested < 0 ? -1 : !nested;
    }
    if (same > 0) {
        PyObject *dims = PyObject_GetAttr(x, word_ndim);
        same = dims ? PyObject_RichCompareBool(dims, SLOT(plan, plan_slots, PLAN_DIMS), Py_EQ) : -1;
        Py_XDECREF(dims);
    }
    return same;
}

/* The operand of a call, if all of its other arguments are those of the call that is known; a
   borrowed reference, or NULL. */
static PyObject *operand(const Call *call, Py_ssize_t fixed)
{
    PyObject *plan = call->plan, *usual = SLOT(plan, plan_slots, PLAN_KWARGS);
    const Py_ssize_t length = PyTuple_GET_SIZE(call->args);
    if (length != number_in(SLOT(plan, plan_slots, PLAN_LENGTH)))
        return NULL;
    int same = (call->kwargs ? PyDict_GET_SIZE(call->kwargs) : 0) == PyDict_GET_SIZE(usual);
    if (same && PyDict_GET_SIZE(usual))
        same = PyObject_RichCompareBool(call->kwargs, usual, Py_EQ);
    PyObject *rest = SLOT(plan, plan_slots, PLAN_REST);
    for (Py_ssize_t i = fixed; same > 0 && i < length; i++)
        same = PyObject_RichCompareBool(PyTuple_GET_ITEM(call->args, i),
                                        PyTuple_GET_ITEM(rest, i - fixed), Py_EQ);
    const long at = same > 0 ? number_in(SLOT(plan, plan_slots, PLAN_X_AT)) : -1;
    if (at < 0 || at >= length)
        return NULL;
    PyObject *x = PyTuple_GET_ITEM(call->args, at);
    return has_form(x, plan) > 0 ? x : NULL;
}

static int linear_is_plain(const Call *call)
{
    PyObject *plan = call->plan;
    const long at = number_in(SLOT(plan, linear_slots, LINEAR_W_AT));
    if (at < 0 || at >= PyTuple_GET_SIZE(call->args))
        return PyErr_Occurred() ? -1 : 0;
    PyObject *weight = referent(SLOT(plan, linear_slots, LINEAR_WEIGHT));
    Py_XDECREF(weight); /* compared only: the arguments hold it if it is the one */
    if (!weight || weight != PyTuple_GET_ITEM(call->args, at) || !operand(call, 3))
        return PyErr_Occurred() ? -1 : 0;
    return is_true(PyObject_GetAttr(SLOT(plan, plan_slots, PLAN_STATE), word_settled));
}

/* Whether an activation reads what the same function made as before: made by another one, its
   neurons may lie elsewhere. Of tensors without a history Python knows. */
static int same_origin(PyObject *plan, PyObject *x)
{
    PyObject *node = PyObject_GetAttr(x, word_grad_fn);
    if (!node || node == Py_None) {
        Py_XDECREF(node);
        return node ? 0 : -1;
    }
    int same = PySet_Contains(SLOT(plan, activation_slots, ACTIVATION_ORIGINS),
                              (PyObject *)Py_TYPE(node));
    Py_DECREF(node);
    return same;
}

static int activation_is_plain(const Call *call)
{
    PyObject *plan = call->plan, *x = operand(call, 1);
    if (!x || SLOT(plan, plan_slots, PLAN_DIRECT) == Py_None)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *shape = PyObject_GetAttr(x, word_shape);
    const long dim = shape ? number_in(SLOT(plan, activation_slots, ACTIVATION_DIM)) : -1;
    const long width = number_in(SLOT(plan, activation_slots, ACTIVATION_WIDTH));
    int same = 0;
    if (shape && !PyErr_Occurred()) {
        const Py_ssize_t dims = PyTuple_GET_SIZE(shape), place = dim < 0 ? dims + dim : dim;
        same = place >= 0 && place < dims
               && PyLong_AsLong(PyTuple_GET_ITEM(shape, place)) == width;
    }
    Py_XDECREF(shape);
    if (PyErr_Occurred())
        return -1;
    return same ? same_origin(plan, x) : 0;
}

int is_plain(const Call *call, int *linear)
{
    *linear = Py_IS_TYPE(call->plan, linear_slots.type);
    if (!*linear && !Py_IS_TYPE(call->plan, activation_slots.type))
        return 0;
    if (call->func != SLOT(call->plan, plan_slots, PLAN_FUNC))
        return 0;
    return *linear ? linear_is_plain(call) : activation_is_plain(call);
}

/* -- run it --------------------------------------------------------------------------------------- */

/* The hook by the plan's own method; whether it is to be counted, -1 with an exception. */
static int hook_by_plan(const Call *call, PyObject *node, PyObject *x, PyObject *out,
                        PyObject *edge)
{
    return is_true(PyObject_CallMethodObjArgs(call->plan, word_hook, call->recorder, node, x, out,
                                              edge, NULL));
}

/* Put a hook where the gradients of a linear op pass; whether it is to be counted. */
static int hook_linear(const Call *call, PyObject *x, PyObject *out)
{
    PyObject *node = PyObject_GetAttr(out, word_grad_fn);
    if (!node || node == Py_None) {
        Py_XDECREF(node);
        return node ? 0 : -1;
    }
    const long index = number_in(SLOT(call->plan, plan_slots, PLAN_INDEX));
    int shared = is_true(PyObject_GetAttr(x, word_requires_grad)), hooked = -1;
    if (shared >= 0 && !PyErr_Occurred()) {
        const int direct = (PyObject *)Py_TYPE(node) == SLOT(call->plan, plan_slots, PLAN_DIRECT);
        if (direct && (index >= 0 || !shared))
            hooked = put_hook(call->books, call->recorder, call->plan, node, shared ? index : -1, 1)
                             < 0 ? -1 : 1;
        else
            hooked = hook_by_plan(call, node, x, out, NULL);
    }
    Py_DECREF(node);
    return hooked;
}

/* Count the call, whose gradients are waited for or not; what it returns, or NULL. */
static PyObject *counted(const Call *call, int hooked, PyObject *out)
{
    PyObject *what = hooked > 0 ? word_called_hooked : word_called;
    if (hooked < 0
        || tell(call->books, SLOT(call->plan, plan_slots, PLAN_STATE), what, call->where) < 0)
        Py_CLEAR(out);
    return out;
}

/* Tell of a call without rows; what it returns, or NULL. */
static PyObject *without_rows(const Call *call, PyObject *out)
{
    PyObject *told = PyObject_CallMethodObjArgs(call->plan, word_no_rows, call->recorder, NULL);
    if (!told)
        Py_CLEAR(out);
    Py_XDECREF(told);
    return out;
}

static PyObject *run_linear(const Call *call)
{
    PyObject *plan = call->plan;
    PyObject *x = PyTuple_GET_ITEM(call->args, number_in(SLOT(plan, plan_slots, PLAN_X_AT)));
    PyObject *out = PyObject_Call(call->func, call->args, call->kwargs);
    PyObject *slot_a = SLOT(plan, plan_slots, PLAN_A), *slot_z = SLOT(plan, plan_slots, PLAN_Z);
    PyObject *a = out ? look_at(call->books, call->recorder, slot_a, x,
                                SLOT(plan, linear_slots, LINEAR_X_KIND)) : NULL;
    if (a == Py_None) { /* no rows */
        Py_DECREF(a);
        return without_rows(call, out);
    }
    PyObject *z = a ? look_at(call->books, call->recorder, slot_z, out,
                              SLOT(plan, linear_slots, LINEAR_Z_KIND)) : NULL;
    int failed = !z || write_down(call->books, slot_a, a) < 0
                 || write_down(call->books, slot_z, z) < 0;
    if (!failed && SLOT(plan, linear_slots, LINEAR_PATCHED) == Py_True) {
        PyObject *told = PyObject_CallMethodObjArgs(
            call->recorder, word_image, SLOT(plan, plan_slots, PLAN_STATE),
            SLOT(plan, plan_slots, PLAN_OP), x, a, NULL);
        failed = !told;
        Py_XDECREF(told);
    }
    Py_XDECREF(a);
    Py_XDECREF(z);
    if (failed)
        Py_CLEAR(out);
    return out ? counted(call, hook_linear(call, x, out), out) : NULL;
}

/* (node, number of its output) that the gradients of a tensor flow to, or None; new reference.
   Taken before a call that may overwrite the tensor. */
static PyObject *edge_before(const Call *call, PyObject *x)
{
    if (SLOT(call->plan, activation_slots, ACTIVATION_IN_PLACE) != Py_True)
        Py_RETURN_NONE;
    PyObject *node = PyObject_GetAttr(x, word_grad_fn);
    PyObject *number = node ? PyObject_GetAttr(x, word_output_nr) : NULL;
    PyObject *edge = number ? PyTuple_Pack(2, node, number) : NULL;
    Py_XDECREF(node);
    Py_XDECREF(number);
    return edge;
}

/* Put a hook where the gradients of an activation pass; whether it is to be counted. */
static int hook_activation(const Call *call, PyObject *x, PyObject *out, PyObject *edge)
{
    PyObject *node = PyObject_GetAttr(out, word_grad_fn);
    if (!node || node == Py_None) {
        Py_XDECREF(node);
        return node ? 0 : -1;
    }
    int hooked = (PyObject *)Py_TYPE(node) == SLOT(call->plan, plan_slots, PLAN_DIRECT)
                     ? is_true(PyObject_GetAttr(x, word_requires_grad)) : 0;
    if (hooked > 0)
        hooked = put_hook(call->books, call->recorder, call->plan, node, 0, 0) < 0 ? -1 : 1;
    else if (!hooked)
        hooked = hook_by_plan(call, node, x, out, edge);
    Py_DECREF(node);
    return hooked;
}

static PyObject *run_activation(const Call *call)
{
    PyObject *plan = call->plan, *kind = SLOT(plan, activation_slots, ACTIVATION_KIND);
    PyObject *slot_a = SLOT(plan, plan_slots, PLAN_A), *slot_z = SLOT(plan, plan_slots, PLAN_Z);
    PyObject *x = PyTuple_GET_ITEM(call->args, 0), *edge = edge_before(call, x);
    PyObject *z = edge ? look_at(call->books, call->recorder, slot_z, x, kind) : NULL;
    PyObject *out = z ? PyObject_Call(call->func, call->args, call->kwargs) : NULL;
    if (out && z != Py_None) {
        PyObject *a = write_down(call->books, slot_z, z) < 0
                          ? NULL : look_at(call->books, call->recorder, slot_a, out, kind);
        if (!a || write_down(call->books, slot_a, a) < 0)
            Py_CLEAR(out);
        Py_XDECREF(a);
        if (out)
            out = counted(call, hook_activation(call, x, out, edge), out);
    } else if (out) {
        out = without_rows(call, out);
    }
    Py_XDECREF(z);
    Py_XDECREF(edge);
    return out;
}

PyObject *run_plain(const Call *call, int linear)
{
    return linear ? run_linear(call) : run_activation(call);
}
