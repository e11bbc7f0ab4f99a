/* Tensors as Python objects, known by their attributes: neither torch's headers nor its binary
   interface are needed, so that one build serves every torch. */

#include "_native.h"

PyObject *word_is_contiguous, *word_shape, *word_data_ptr, *word_base, *word_version, *word_numel;
static PyObject *word_dtype, *word_layout, *word_is_nested, *word_is_neg, *word_offset, *word_stride,
    *word_is_cpu, *word_get_device;

static const struct {
    PyObject **word;
    const char *text;
} words[] = {
    {&word_is_cpu, "is_cpu"}, {&word_dtype, "dtype"}, {&word_layout, "layout"},
    {&word_is_nested, "is_nested"}, {&word_is_neg, "is_neg"}, {&word_numel, "numel"},
    {&word_is_contiguous, "is_contiguous"}, {&word_shape, "shape"}, {&word_data_ptr, "data_ptr"},
    {&word_base, "_base"}, {&word_version, "_version"}, {&word_offset, "storage_offset"},
    {&word_stride, "stride"}, {&word_get_device, "get_device"},
};

int intern_words(void)
{
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!*words[i].word && !(*words[i].word = PyUnicode_InternFromString(words[i].text)))
            return -1;
    return 0;
}

int is_true(PyObject *value)
{
    int result = value ? PyObject_IsTrue(value) : -1;
    Py_XDECREF(value);
    return result;
}

int64_t integer(PyObject *value)
{
    int64_t result = value ? PyLong_AsLongLong(value) : -1;
    Py_XDECREF(value);
    return result;
}

PyObject *call(PyObject *x, PyObject *word) { return PyObject_CallMethodNoArgs(x, word); }

int lies_on(PyObject *x, int64_t index)
{
    if (index == ON_CPU)
        return is_true(PyObject_GetAttr(x, word_is_cpu));
    int64_t found = integer(call(x, word_get_device));
    return PyErr_Occurred() ? -1 : found == index;
}

int dtype_of(const Known *known, PyObject *x)
{
    PyObject *type = (PyObject *)Py_TYPE(x);
    if (type != PyTuple_GET_ITEM(known->types, 0) && type != PyTuple_GET_ITEM(known->types, 1))
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
    return !nested && !negated ? found : -1;
}

int64_t size_at(PyObject *x, Py_ssize_t dim)
{
    PyObject *shape = PyObject_GetAttr(x, word_shape);
    if (!shape || !PyTuple_Check(shape)) {
        Py_XDECREF(shape);
        return -1;
    }
    Py_ssize_t dims = PyTuple_GET_SIZE(shape), place = dim < 0 ? dims + dim : dim;
    int64_t size = place >= 0 && place < dims ? PyLong_AsLongLong(PyTuple_GET_ITEM(shape, place)) : 0;
    Py_DECREF(shape);
    return size;
}

int place_of(PyObject *x, int kind, int is_view, long long place[6])
{
    memset(place, 0, 6 * sizeof *place);
    place[0] = kind;
    if (!is_view)
        return 0;
    place[1] = integer(call(x, word_offset));
    place[2] = integer(call(x, word_numel));
    place[3] = size_at(x, kind == ROWS ? -1 : 1);
    place[5] = kind == ROWS ? 0 : size_at(x, 0); /* images of other sizes may have as many channels */
    PyObject *strides = call(x, word_stride);
    if (strides && PyTuple_Check(strides) && PyTuple_GET_SIZE(strides))
        place[4] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides, PyTuple_GET_SIZE(strides) - 1));
    Py_XDECREF(strides);
    return PyErr_Occurred() ? -1 : 0;
}
