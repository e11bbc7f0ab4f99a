/* Tensors as Python objects: neither torch's headers nor its binary interface are needed, so that
   one build serves every torch.

   Torch from 2.10 on has a function, for other libraries, that tells at once where a tensor lies
   and how (_dlpack.h). What it does not tell, and all that it has no answer for, is asked attribute
   by attribute, at several times the cost. */

#include "_native.h"

static PyObject *word_dtype, *word_layout, *word_is_nested, *word_is_neg, *word_is_cpu,
    *word_get_device, *word_is_contiguous, *word_shape, *word_data_ptr, *word_base, *word_version,
    *word_numel, *word_offset, *word_stride;

static const Word words[] = {
    {&word_is_cpu, "is_cpu"}, {&word_dtype, "dtype"}, {&word_layout, "layout"},
    {&word_is_nested, "is_nested"}, {&word_is_neg, "is_neg"}, {&word_numel, "numel"},
    {&word_is_contiguous, "is_contiguous"}, {&word_shape, "shape"}, {&word_data_ptr, "data_ptr"},
    {&word_base, "_base"}, {&word_version, "_version"}, {&word_offset, "storage_offset"},
    {&word_stride, "stride"}, {&word_get_device, "get_device"},
};

int intern_words(void) { return intern_all(words, sizeof words / sizeof *words); }

int64_t integer(PyObject *value)
{
    int64_t result = value ? PyLong_AsLongLong(value) : -1;
    Py_XDECREF(value);
    return result;
}

static PyObject *call(PyObject *x, PyObject *word) { return PyObject_CallMethodNoArgs(x, word); }

int64_t data_ptr_of(PyObject *x) { return integer(call(x, word_data_ptr)); }

/* -- what torch tells at once --------------------------------------------------------------------- */

int know(Known *known, PyObject *table)
{
    PyObject *type = PyTuple_GET_ITEM(known->types, 0);
    if (!(known->base = PyObject_GetAttr(type, word_base))
        || !(known->version = PyObject_GetAttr(type, word_version))
        || !(known->is_neg = PyObject_GetAttr(type, word_is_neg)))
        return -1;
    const DLTable *found = NULL;
    if (PyCapsule_IsValid(table, DL_CAPSULE))
        found = PyCapsule_GetPointer(table, DL_CAPSULE);
    while (found && found->major != DL_MAJOR)
        found = found->previous;
    /* A getter is called as the interpreter does, but for looking it up. */
    if (found && Py_TYPE(known->base)->tp_descr_get && Py_TYPE(known->version)->tp_descr_get)
        known->describe = found->describe;
    return 0;
}

/* Whether a tensor is one of torch's own: of subclasses and wrappers nothing is taken as known. */
static int is_plain(const Known *known, PyObject *x)
{
    PyObject *type = (PyObject *)Py_TYPE(x);
    return type == PyTuple_GET_ITEM(known->types, 0) || type == PyTuple_GET_ITEM(known->types, 1);
}

static int number_of(const DLTensor *tensor)
{
    if (tensor->dtype.lanes != 1)
        return -1;
    switch (tensor->dtype.code << 8 | tensor->dtype.bits) {
    case DL_FLOAT << 8 | 32: return FLOAT32;
    case DL_FLOAT << 8 | 64: return FLOAT64;
    case DL_FLOAT << 8 | 16: return FLOAT16;
    case DL_BFLOAT << 8 | 16: return BFLOAT16;
    default: return -1;
    }
}

/* Whether a tensor lies on a device, as get_device() would say; -1 where only torch can. */
static int lies_at(const DLTensor *tensor, int64_t index)
{
    switch (tensor->device.type) {
    case DL_CPU: return index == ON_CPU || index == -1;
    case DL_CUDA:
    case DL_ROCM: return tensor->device.id == index;
    default: return -1; /* memory of the host may have types of its own */
    }
}

/* Write down what torch told; 0 where the elements do not lie dense or cannot be read. */
static int note(const DLTensor *tensor, Seen *seen)
{
    const int dims = tensor->ndim;
    const int64_t *shape = tensor->shape, *strides = tensor->strides;
    uint64_t size = 1;
    int dense = 1;
    for (int i = dims - 1; i >= 0; i--) { /* the stride of a single element does not matter */
        dense &= shape[i] == 1 || (uint64_t)strides[i] == size;
        size *= (uint64_t)shape[i];
    }
    seen->told = 1, seen->dtype = number_of(tensor), seen->dims = dims;
    seen->address = (int64_t)(intptr_t)tensor->data + (int64_t)tensor->byte_offset;
    seen->size = (int64_t)size;
    seen->first = dims > 0 ? shape[0] : 0, seen->second = dims > 1 ? shape[1] : 0;
    seen->last = dims > 0 ? shape[dims - 1] : 0, seen->stride = dims > 0 ? strides[dims - 1] : 0;
    for (int i = 0; i < dims && i < DIMS; i++)
        seen->shape[i] = shape[i];
    return seen->dtype >= 0 && (dense || !size);
}

static int lies_on(PyObject *x, int64_t index)
{
    if (index == ON_CPU)
        return is_true(PyObject_GetAttr(x, word_is_cpu));
    int64_t found = integer(call(x, word_get_device));
    return PyErr_Occurred() ? -1 : found == index;
}

int see(const Known *known, PyObject *x, int64_t index, Seen *seen)
{
    DLTensor tensor;
    seen->told = 0, seen->size = -1;
    if (!known->describe || !is_plain(known, x))
        return lies_on(x, index);
    if (known->describe(x, &tensor)) {
        PyErr_Clear(); /* a sparse tensor, for one; its attributes are to say what becomes of it */
        return lies_on(x, index);
    }
    int here = lies_at(&tensor, index);
    if (here < 0 || (tensor.ndim && !tensor.strides))
        return lies_on(x, index);
    return here && note(&tensor, seen);
}

/* -- what is asked of each tensor ------------------------------------------------------------------ */

static PyObject *get(PyObject *descriptor, PyObject *x)
{
    return Py_TYPE(descriptor)->tp_descr_get(descriptor, x, (PyObject *)Py_TYPE(x));
}

PyObject *base_of(const Known *known, PyObject *x, const Seen *seen)
{
    return seen->told ? get(known->base, x) : PyObject_GetAttr(x, word_base);
}

int version_of(const Known *known, PyObject *x, const Seen *seen, long long *version)
{
    PyObject *value = seen->told ? get(known->version, x) : PyObject_GetAttr(x, word_version);
    *version = integer(value);
    if (*version != -1)
        return 1;
    if (!PyErr_ExceptionMatches(PyExc_RuntimeError))
        return -1;
    PyErr_Clear(); /* tensors made in inference mode have none */
    return 0;
}

static int dtype_by_attributes(const Known *known, PyObject *x)
{
    if (!is_plain(known, x))
        return -1;
    PyObject *dtype = PyObject_GetAttr(x, word_dtype), *layout = PyObject_GetAttr(x, word_layout);
    int found = -1, strided = layout == known->layout;
    for (int i = 0; i < DTYPES; i++)
        if (dtype == PyTuple_GET_ITEM(known->dtypes, i))
            found = i;
    Py_XDECREF(dtype);
    Py_XDECREF(layout);
    if (!dtype || !layout)
        return -2;
    if (found < 0 || !strided)
        return -1;
    int nested = is_true(PyObject_GetAttr(x, word_is_nested));
    int negated = is_true(call(x, word_is_neg));
    if (nested < 0 || negated < 0)
        return -2;
    if (nested || negated)
        return -1;
    int dense = is_true(call(x, word_is_contiguous));
    return dense < 0 ? -2 : dense ? found : -1;
}

int dtype_of(const Known *known, PyObject *x, const Seen *seen)
{
    if (!seen->told)
        return dtype_by_attributes(known, x);
    /* Its memory may hold the negative of each element; nothing told so far says so, and not only
       views do: detach() keeps the mark. */
    int negated = is_true(PyObject_CallOneArg(known->is_neg, x));
    return negated < 0 ? -2 : negated ? -1 : seen->dtype;
}

int measure(PyObject *x, Seen *seen)
{
    if (seen->size >= 0)
        return 0;
    seen->size = integer(call(x, word_numel));
    PyObject *shape = PyErr_Occurred() ? NULL : PyObject_GetAttr(x, word_shape);
    if (!shape)
        return -1;
    int dims = PyTuple_Check(shape) ? (int)PyTuple_GET_SIZE(shape) : 0;
    seen->dims = dims, seen->first = seen->second = seen->last = 0;
    for (int i = 0; i < dims && !PyErr_Occurred(); i++) {
        int64_t size = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
        if (i == 0)
            seen->first = size;
        if (i == 1)
            seen->second = size;
        if (i < DIMS)
            seen->shape[i] = size;
        seen->last = size;
    }
    Py_DECREF(shape);
    return PyErr_Occurred() ? -1 : 0;
}

int place_of(PyObject *x, Seen *seen, int kind, long long place[6])
{
    if (measure(x, seen) < 0)
        return -1;
    int64_t start = seen->address;
    if (!seen->told) {
        start = integer(call(x, word_offset)), seen->stride = 0;
        PyObject *strides = PyErr_Occurred() ? NULL : call(x, word_stride);
        Py_ssize_t dims = strides && PyTuple_Check(strides) ? PyTuple_GET_SIZE(strides) : 0;
        if (dims)
            seen->stride = PyLong_AsLongLong(PyTuple_GET_ITEM(strides, dims - 1));
        Py_XDECREF(strides);
    }
    place[0] = kind, place[1] = start, place[2] = seen->size;
    place[3] = kind == ROWS ? seen->last : seen->second, place[4] = seen->stride;
    place[5] = kind == ROWS ? 0 : seen->first; /* images of other sizes may have as many channels */
    return PyErr_Occurred() ? -1 : 0;
}

int64_t address_of(PyObject *x, const Seen *seen)
{
    return seen->told ? seen->address : data_ptr_of(x);
}
