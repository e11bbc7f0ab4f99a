/* The compiled part of calls.py as a Python module: what happens at each call of a recorded step.

   It does nothing that Python could not do: the classes whose slots it reads (plans.py, mode.py,
   sites.py, hooks.py) do the same in the same order, and do it wherever a call is not the plain one
   that their plan knows. Of torch it knows attributes and methods only, so that one build serves
   every torch. */

#include "_calls.h"

#include <structmember.h>

Slots run_slots, trail_slots, frame_slots, enter_slots, plan_slots, linear_slots, activation_slots;
Torch known;
PyTypeObject *books_type, *hook_type;

/* -- words ---------------------------------------------------------------------------------------- */

PyObject *word_books, *word_called, *word_called_hooked, *word_detail, *word_dtype, *word_due,
    *word_arrived, *word_epoch, *word_follow, *word_grad_fn, *word_handle, *word_hook, *word_image,
    *word_is_leaf, *word_is_nested, *word_itself, *word_layout, *word_local, *word_model,
    *word_ndim, *word_no_rows, *word_otherwise, *word_output_nr, *word_plans,
    *word_register_hook, *word_repeated, *word_requires_grad, *word_run, *word_settled,
    *word_shape, *word_shared;

static const Word words[] = {
    {&word_books, "books"}, {&word_called, "called"}, {&word_called_hooked, "called, hooked"},
    {&word_detail, "detail"}, {&word_dtype, "dtype"}, {&word_due, "due"},
    {&word_arrived, "arrived"}, {&word_epoch, "epoch"}, {&word_follow, "follow"},
    {&word_grad_fn, "grad_fn"}, {&word_handle, "handle"}, {&word_hook, "hook"},
    {&word_image, "image"}, {&word_is_leaf, "is_leaf"}, {&word_is_nested, "is_nested"},
    {&word_itself, "itself"}, {&word_layout, "layout"}, {&word_local, "_local"},
    {&word_model, "_model"}, {&word_ndim, "ndim"}, {&word_no_rows, "no_rows"},
    {&word_otherwise, "otherwise"}, {&word_output_nr, "output_nr"}, {&word_plans, "plans"},
    {&word_register_hook, "register_hook"}, {&word_repeated, "repeated"},
    {&word_requires_grad, "requires_grad"}, {&word_run, "run"}, {&word_settled, "settled"},
    {&word_shape, "shape"}, {&word_shared, "shared"},
};

/* -- slots ---------------------------------------------------------------------------------------- */

static const char *const run_names[] = {"stack", "trail", "recorder", "where", "recomputing",
                                        "paused"};
static const char *const trail_names[] = {"tensors"};
static const char *const frame_names[] = {"path", "module", "counts", "label", "pooled", "plans",
                                          "index", "single"};
static const char *const enter_names[] = {"path", "fast", "single"};
static const char *const plan_names[] = {"func", "kwargs", "length", "rest", "dtype", "dims",
                                         "x_at", "a", "z", "grad_a", "grad_z", "count", "direct",
                                         "index", "state", "op"};
static const char *const linear_names[] = {"weight", "w_at", "x_kind", "z_kind", "grad_alone",
                                           "patched"};
static const char *const activation_names[] = {"dim", "kind", "width", "origins", "in_place"};

static const struct {
    const char *role;
    Slots *slots;
    const char *const *names;
    int number;
} classes[] = {
    {"run", &run_slots, run_names, RUN_SLOTS},
    {"trail", &trail_slots, trail_names, TRAIL_SLOTS},
    {"frame", &frame_slots, frame_names, FRAME_SLOTS},
    {"enter", &enter_slots, enter_names, ENTER_SLOTS},
    {"plan", &plan_slots, plan_names, PLAN_SLOTS},
    {"linear", &linear_slots, linear_names, LINEAR_SLOTS},
    {"activation", &activation_slots, activation_names, ACTIVATION_SLOTS},
};

/* The place of a slot in the instances of a class; -1 with an exception. */
static Py_ssize_t slot_of(PyTypeObject *type, const char *name)
{
    PyObject *descriptor = PyObject_GetAttrString((PyObject *)type, name);
    if (!descriptor)
        return -1;
    Py_ssize_t at = -1;
    if (Py_IS_TYPE(descriptor, &PyMemberDescr_Type)) {
        const PyMemberDef *member = ((PyMemberDescrObject *)descriptor)->d_member;
        at = member->type == T_OBJECT_EX ? member->offset : -1;
    }
    Py_DECREF(descriptor);
    if (at < 0)
        PyErr_Format(PyExc_TypeError, "%s.%s is no slot", type->tp_name, name);
    return at;
}

PyDoc_STRVAR(learn_doc,
"learn(role, type)\n--\n\n"
"Learn where the instances of a class hold what is read here.");

static PyObject *learn(PyObject *self, PyObject *args)
{
    const char *role;
    PyObject *type;
    (void)self;
    if (!PyArg_ParseTuple(args, "sO!", &role, &PyType_Type, &type))
        return NULL;
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        if (strcmp(role, classes[i].role))
            continue;
        Slots found = {(PyTypeObject *)type, {0}};
        for (int k = 0; k < classes[i].number; k++)
            if ((found.at[k] = slot_of((PyTypeObject *)type, classes[i].names[k])) < 0)
                return NULL;
        Py_INCREF(type);
        *classes[i].slots = found;
        Py_RETURN_NONE;
    }
    PyErr_Format(PyExc_ValueError, "no class is known as %s", role);
    return NULL;
}

PyDoc_STRVAR(know_doc,
"know(tensor, strided, transforms, out_of_memory)\n--\n\n"
"Know the tensor type of torch, its plain layout, its function that tells the innermost transform\n"
"of torch.func, and the error of a GPU without memory.");

static PyObject *know(PyObject *self, PyObject *args)
{
    Torch found;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOO", &found.tensor, &found.strided, &found.transforms,
                          &found.out_of_memory))
        return NULL;
    Py_INCREF(found.tensor), Py_INCREF(found.strided);
    Py_INCREF(found.transforms), Py_INCREF(found.out_of_memory);
    known = found;
    Py_RETURN_NONE;
}

int is_transformed(void)
{
    PyObject *found = PyObject_CallNoArgs(known.transforms);
    Py_XDECREF(found); /* compared with None only */
    return found ? found != Py_None : -1;
}

/* -- the module ------------------------------------------------------------------------------------ */

PyDoc_STRVAR(entered_doc,
"entered(hook, attachment, module)\n--\n\n"
"Note that a module begins inside others that run; False where more is to be done, and nothing was.");

PyDoc_STRVAR(left_doc,
"left(attachment, module)\n--\n\n"
"Note that the innermost module ended; False where more is to be done, and nothing was.");

PyDoc_STRVAR(stale_doc,
"when_stale(function)\n--\n\n"
"What is to be called, soon and in the main thread, where a mode is called whose pass has ended.");

static PyMethodDef functions[] = {
    {"entered", (PyCFunction)(void (*)(void))entered, METH_FASTCALL, entered_doc},
    {"left", (PyCFunction)(void (*)(void))left, METH_FASTCALL, left_doc},
    {"when_stale", when_stale, METH_O, stale_doc},
    {"learn", learn, METH_VARARGS, learn_doc},
    {"know", know, METH_VARARGS, know_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "shiftscope.capture._calls", NULL, -1, functions, NULL, NULL, NULL, NULL,
};

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

PyMODINIT_FUNC PyInit__calls(void)
{
    const size_t number = sizeof words / sizeof *words;
    PyObject *module = intern_all(words, number) < 0 ? NULL : PyModule_Create(&definition);
    if (!module)
        return NULL;
    books_type = add_type(module, &books_spec);
    hook_type = add_type(module, &hook_spec);
    PyTypeObject *mode = add_type(module, &mode_spec);
    if (!books_type || !hook_type || !mode)
        Py_CLEAR(module);
    Py_XDECREF(mode);
    return module;
}
