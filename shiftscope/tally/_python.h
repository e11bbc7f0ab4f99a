/* What the compiled parts of shiftscope do with Python in the same way. */

#ifndef SHIFTSCOPE_PYTHON_H
#define SHIFTSCOPE_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* A name that is asked for often, and where it is kept. */
typedef struct {
    PyObject **word;
    const char *text;
} Word;

/* Make all names that are not made yet; -1 with an exception set. */
static inline int intern_all(const Word *words, size_t number)
{
    for (size_t i = 0; i < number; i++)
        if (!*words[i].word && !(*words[i].word = PyUnicode_InternFromString(words[i].text)))
            return -1;
    return 0;
}

/* A truth, and the reference to it given back; -1 with an exception set where there is none. */
static inline int is_true(PyObject *value)
{
    int result = value ? PyObject_IsTrue(value) : -1;
    Py_XDECREF(value);
    return result;
}

/* What a weak reference refers to, a new reference, or NULL without an exception. */
static inline PyObject *referent(PyObject *reference)
{
    PyObject *found = NULL;
#if PY_VERSION_HEX >= 0x030D0000
    if (PyWeakref_GetRef(reference, &found) < 0)
        PyErr_Clear();
#else
    found = PyWeakref_Check(reference) ? PyWeakref_GET_OBJECT(reference) : Py_None;
    found = found == Py_None ? NULL : Py_NewRef(found);
#endif
    return found;
}

#endif
