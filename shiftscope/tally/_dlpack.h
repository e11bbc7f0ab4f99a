/* What torch, from 2.10 on, tells of a tensor without Python: the parts of DLPack 1 that are used
   here (github.com/dmlc/dlpack, include/dlpack/dlpack.h).

   The layout is the same within a major version; a new major version changes it. */

#ifndef SHIFTSCOPE_DLPACK_H
#define SHIFTSCOPE_DLPACK_H

#include <stdint.h>

#define DL_CAPSULE "dlpack_exchange_api"

enum { DL_MAJOR = 1 };
enum { DL_CPU = 1, DL_CUDA = 2, DL_ROCM = 10 }; /* types of devices */
enum { DL_FLOAT = 2, DL_BFLOAT = 4 };           /* codes of dtypes */

/* A tensor in memory. Shape and strides, in elements, belong to the tensor described. */
typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} DLTensor;

typedef int (*DLDescribe)(void *object, DLTensor *to); /* not 0 with an exception set */

/* The table of functions, behind a header that no version changes; more follow. */
typedef struct DLTable {
    uint32_t major, minor;
    struct DLTable *previous; /* the same for an older version, or NULL */
    void (*allocate)(void), (*give)(void), (*take)(void); /* for tensors that are handed over */
    DLDescribe describe;                                  /* or NULL */
} DLTable;

#endif
