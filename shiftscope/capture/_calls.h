/* What the compiled parts of calls.py share. */

#ifndef SHIFTSCOPE_CALLS_H
#define SHIFTSCOPE_CALLS_H

#include "../tally/_python.h"

#pragma GCC visibility push(hidden) /* no name of these meets one of another library */

/* -- slots of Python classes (_calls.c) ----------------------------------------------------------- */

/* Where the instances of a class with __slots__ hold what, by the enumerations below. */
enum { RUN_STACK, RUN_TRAIL, RUN_RECORDER, RUN_WHERE, RUN_RECOMPUTING, RUN_PAUSED, RUN_SLOTS };
enum { TRAIL_TENSORS, TRAIL_SLOTS };
enum { FRAME_PATH, FRAME_MODULE, FRAME_COUNTS, FRAME_LABEL, FRAME_POOLED, FRAME_PLANS, FRAME_INDEX,
       FRAME_SINGLE, FRAME_SLOTS };
enum { ENTER_PATH, ENTER_FAST, ENTER_SINGLE, ENTER_SLOTS };
enum { PLAN_FUNC, PLAN_KWARGS, PLAN_LENGTH, PLAN_REST, PLAN_DTYPE, PLAN_DIMS, PLAN_X_AT, PLAN_A,
       PLAN_Z, PLAN_GRAD_A, PLAN_GRAD_Z, PLAN_COUNT, PLAN_DIRECT, PLAN_INDEX, PLAN_STATE, PLAN_OP,
       PLAN_SLOTS };
enum { LINEAR_WEIGHT, LINEAR_W_AT, LINEAR_X_KIND, LINEAR_Z_KIND, LINEAR_GRAD_ALONE, LINEAR_PATCHED,
       LINEAR_SLOTS };
enum { ACTIVATION_DIM, ACTIVATION_KIND, ACTIVATION_WIDTH, ACTIVATION_ORIGINS, ACTIVATION_IN_PLACE,
       ACTIVATION_SLOTS };

typedef struct {
    PyTypeObject *type;
    Py_ssize_t at[PLAN_SLOTS];
} Slots;

extern Slots run_slots, trail_slots, frame_slots, enter_slots, plan_slots, linear_slots,
    activation_slots;

/* A slot of an object of that class; NULL where it was never set. */
#define SLOT(object, slots, name) (*(PyObject **)((char *)(object) + (slots).at[name]))

/* -- what of torch is known ----------------------------------------------------------------------- */

typedef struct {
    PyObject *tensor, *strided, *transforms, *out_of_memory;
} Torch;

extern Torch known;

/* Whether a transform of torch.func (vmap, grad) is in force; -1 with an exception. */
int is_transformed(void);

extern PyObject *word_books, *word_called, *word_called_hooked, *word_detail, *word_dtype,
    *word_due, *word_arrived, *word_epoch, *word_follow, *word_grad_fn, *word_handle, *word_hook,
    *word_image, *word_is_leaf, *word_is_nested, *word_itself, *word_layout, *word_local,
    *word_model, *word_ndim, *word_no_rows, *word_otherwise, *word_output_nr, *word_plans,
    *word_register_hook, *word_repeated, *word_requires_grad, *word_run, *word_settled,
    *word_shape, *word_shared;

/* -- the lists of a recorder (_hooks.c) ----------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *pending, *events, *looks, *imaged;
} Books;

/* What reading a tensor gives; a new reference. */
PyObject *look_at(Books *books, PyObject *recorder, PyObject *slot, PyObject *x, PyObject *kind);

/* Keep a reading for the end of the step, unless it is None; -1 with an exception. */
int write_down(Books *books, PyObject *slot, PyObject *reading);

/* Count something at the end of the step; -1 with an exception. */
int tell(Books *books, PyObject *state, PyObject *what, PyObject *where);

/* Put a hook on the autograd node of a call; -1 with an exception. */
int put_hook(Books *books, PyObject *recorder, PyObject *plan, PyObject *node, long index,
             int linear);

/* -- calls that are known (_plans.c) -------------------------------------------------------------- */

/* A call of a torch function, and where it is recorded. */
typedef struct {
    PyObject *func, *args, *kwargs; /* kwargs: NULL for none */
    PyObject *plan, *recorder, *where;
    Books *books;
} Call;

/* Whether a call is the one that a plan knows, and nothing is to be done for it that only Python
   can; -1 with an exception. */
int is_plain(const Call *call, int *linear);

/* Run it and record it; a new reference to its output. */
PyObject *run_plain(const Call *call, int linear);

extern PyType_Spec books_spec, hook_spec, mode_spec;
extern PyTypeObject *books_type, *hook_type;

/* -- functions of the module (_mode.c, _modules.c) ------------------------------------------------- */

PyObject *when_stale(PyObject *self, PyObject *function);
PyObject *entered(PyObject *self, PyObject *const *args, Py_ssize_t number);
PyObject *left(PyObject *self, PyObject *const *args, Py_ssize_t number);

#pragma GCC visibility pop

#endif
