/* The compiled part of zerosum.py as a Python module. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_rows.h"

#define UNLOCKED (1 << 16) /* elements from which on the interpreter lock is released */

static PyObject *mapped(int map, PyObject *args)
{
    long long from, to, rows, width, threads;
    int dtype;
    if (!PyArg_ParseTuple(args, "LLiLLL", &from, &to, &dtype, &rows, &width, &threads))
        return NULL;
    if (!from || !to || dtype < 0 || dtype >= DTYPES || rows < 1 || width < 1) {
        PyErr_SetString(PyExc_ValueError, "expected addresses, a known dtype and sizes from 1");
        return NULL;
    }
    Table table = {map, dtype, (const char *)(intptr_t)from, (char *)(intptr_t)to, rows, width};
    if (rows * width < UNLOCKED)
        map_rows(&table, 1);
    else {
        Py_BEGIN_ALLOW_THREADS
        map_rows(&table, threads);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyObject *embed(PyObject *self, PyObject *args)
{
    (void)self;
    return mapped(EMBED, args);
}

static PyObject *coordinates(PyObject *self, PyObject *args)
{
    (void)self;
    return mapped(COORDINATES, args);
}

static PyObject *project(PyObject *self, PyObject *args)
{
    (void)self;
    return mapped(PROJECT, args);
}

PyDoc_STRVAR(embed_doc,
"embed(v, w, dtype, rows, width, threads)\n--\n\n"
"Write the rows Bv [rows, width] of the coordinates v [rows, width - 1] to w; by addresses.");

PyDoc_STRVAR(coordinates_doc,
"coordinates(w, v, dtype, rows, width, threads)\n--\n\n"
"Write the coordinates [rows, width - 1] of the rows w [rows, width] to v; by addresses.");

PyDoc_STRVAR(project_doc,
"project(u, w, dtype, rows, width, threads)\n--\n\n"
"Write the rows u [rows, width] less their means to w; by addresses.");

static PyMethodDef methods[] = {
    {"embed", embed, METH_VARARGS, embed_doc},
    {"coordinates", coordinates, METH_VARARGS, coordinates_doc},
    {"project", project, METH_VARARGS, project_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_zerosum",
    .m_doc = "Rows that sum to zero and their coordinates, in one pass over memory.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__zerosum(void) { return PyModuleDef_Init(&module); }
