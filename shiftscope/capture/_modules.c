/* The stack of running modules: where they begin and end. */

#include "_calls.h"

/* The forward pass of this thread in an attachment; a new reference, or NULL without an exception
   where there is none, or a transform is in force. */
static PyObject *run_of(PyObject *attachment)
{
    if (is_transformed())
        return NULL;
    PyObject *local = PyObject_GetAttr(attachment, word_local);
    PyObject *run = local ? PyObject_GetAttr(local, word_run) : NULL;
    if (local && !run && PyErr_ExceptionMatches(PyExc_AttributeError))
        PyErr_Clear();
    Py_XDECREF(local);
    if (run && !Py_IS_TYPE(run, run_slots.type))
        Py_CLEAR(run);
    return run;
}

/* Whether a module is the one that is watched, where more is to be done; -1 with an exception. */
static int is_outermost(PyObject *attachment, PyObject *module)
{
    PyObject *reference = PyObject_GetAttr(attachment, word_model);
    PyObject *model = reference ? referent(reference) : NULL;
    Py_XDECREF(reference);
    Py_XDECREF(model);
    return reference ? model == module : -1;
}

/* The plans of a module, by its path; a new reference, or NULL. */
static PyObject *plans_at(PyObject *recorder, PyObject *path)
{
    PyObject *plans = PyObject_GetAttr(recorder, word_plans), *found = NULL;
    if (plans && PyDict_Check(plans))
        found = Py_XNewRef(PyDict_GetItemWithError(plans, path));
    Py_XDECREF(plans);
    return found;
}

/* A frame as the class would make it. */
static PyObject *new_frame(PyObject *path, PyObject *module, PyObject *plans, PyObject *single)
{
    PyObject *counts = PyDict_New(), *first = counts ? PyLong_FromLong(0) : NULL;
    PyObject *frame = first ? frame_slots.type->tp_alloc(frame_slots.type, 0) : NULL;
    if (!frame) {
        Py_XDECREF(counts);
        Py_XDECREF(first);
        return NULL;
    }
    SLOT(frame, frame_slots, FRAME_PATH) = Py_NewRef(path);
    SLOT(frame, frame_slots, FRAME_MODULE) = Py_NewRef(module);
    SLOT(frame, frame_slots, FRAME_COUNTS) = counts;
    SLOT(frame, frame_slots, FRAME_LABEL) = Py_NewRef(Py_None);
    SLOT(frame, frame_slots, FRAME_POOLED) = Py_NewRef(Py_False);
    SLOT(frame, frame_slots, FRAME_PLANS) = Py_NewRef(plans);
    SLOT(frame, frame_slots, FRAME_INDEX) = first;
    SLOT(frame, frame_slots, FRAME_SINGLE) = Py_NewRef(single);
    return frame;
}

/* Note the path of a module that was called; -1 with an exception. */
static int note_called(PyObject *attachment, PyObject *path)
{
    PyObject *called = PyObject_GetAttr(attachment, word_called);
    int failed = called ? PySet_Add(called, path) : -1;
    Py_XDECREF(called);
    return failed;
}

PyObject *entered(PyObject *self, PyObject *const *args, Py_ssize_t number)
{
    (void)self;
    if (number != 3 || !Py_IS_TYPE(args[0], enter_slots.type)) {
        PyErr_SetString(PyExc_TypeError, "expected hook, attachment and module");
        return NULL;
    }
    PyObject *hook = args[0], *attachment = args[1], *module = args[2];
    PyObject *path = SLOT(hook, enter_slots, ENTER_PATH), *run = run_of(attachment);
    PyObject *plans = NULL, *frame = NULL;
    if (run && SLOT(hook, enter_slots, ENTER_FAST) == Py_False
        && PyList_GET_SIZE(SLOT(run, run_slots, RUN_STACK))
        && SLOT(run, run_slots, RUN_RECORDER) != Py_None
        && SLOT(run, run_slots, RUN_RECOMPUTING) == Py_False
        && is_outermost(attachment, module) == 0)
        plans = plans_at(SLOT(run, run_slots, RUN_RECORDER), path);
    if (plans && note_called(attachment, path) == 0)
        frame = new_frame(path, module, plans, SLOT(hook, enter_slots, ENTER_SINGLE));
    if (frame && PyList_Append(SLOT(run, run_slots, RUN_STACK), frame) < 0)
        Py_CLEAR(frame);
    Py_XDECREF(run);
    Py_XDECREF(plans);
    Py_XDECREF(frame);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(frame != NULL);
}

PyObject *left(PyObject *self, PyObject *const *args, Py_ssize_t number)
{
    (void)self;
    if (number != 2) {
        PyErr_SetString(PyExc_TypeError, "expected attachment and module");
        return NULL;
    }
    PyObject *run = run_of(args[0]);
    PyObject *stack = run ? SLOT(run, run_slots, RUN_STACK) : NULL;
    const Py_ssize_t depth = stack ? PyList_GET_SIZE(stack) : 0;
    PyObject *frame = depth > 1 ? PyList_GET_ITEM(stack, depth - 1) : NULL;
    int innermost = frame && Py_IS_TYPE(frame, frame_slots.type)
                    && SLOT(frame, frame_slots, FRAME_MODULE) == args[1]
                    && SLOT(run, run_slots, RUN_PAUSED) != args[1];
    if (innermost)
        PyList_SetSlice(stack, depth - 1, depth, NULL);
    Py_XDECREF(run);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(innermost);
}
