/* Descriptions of a call's tensors: a row of integers for each call, and a number for each distinct row.

   A row is (trace/tensor_rows.py reads it):
       INPUTS, items of the positional arguments, entries of the keyword arguments; or OUTPUT, a value.
   A value that holds tensors is one of
       TENSOR, number of its dtype and device, number of dimensions, sizes;
       SEQUENCE, items;
       MAPPING, entries;
   and a value without tensors adds nothing. Items are
       0 if all are visited, else twice the length, plus 1 if the limit was MAX_LISTED; for each distinct item a mask of
       the visited positions that hold it, and the value; then END;
   or, for a list with one item for each layer, the item of the call's own layer, whichever that is:
       -1, 1, the value, END.
   Entries are, for each name, 1 + number of the name, the value; then END.

   Python is called only for facts that C cannot read: once for each type, name, and pair of dtype and device, and for
   each tensor of a class other than torch.Tensor and Parameter. No Python object is created or kept, so a recording is
   no work for the garbage collector. Every visited object is owned while Python code may run: another thread, or code
   that a lookup itself runs, may change any container meanwhile. */

#ifndef TALKERVIZ_DESCRIBE_H
#define TALKERVIZ_DESCRIBE_H

#include "platform.h"
#include "pointer_table.h"

/* Traversal of a type's values; recorder/tensor_signatures.py's `Kind` has the same numbers. */
enum { NOTHING, TENSOR_KIND, SEQUENCE_KIND, MAPPING_KIND, OBJECT_KIND, CACHE_KIND, UNPACK_KIND };
enum { END, TENSOR, SEQUENCE, MAPPING, INPUTS, OUTPUT };
enum {
  NO_TENSORS = 0,        /* number of a call without tensors */
  MAX_NESTING = 8,       /* nested containers; deeper ones are not described */
  MAX_ITEMS = 32,        /* visited items of a longer sequence: the first and the last half of this number */
  MAX_LISTED = 8,        /* the same for a list of tensors, which may grow call by call */
  MERGED_ITEMS = 8,      /* items; in a longer sequence equal items are described once */
  MAX_ENTRIES = 256,     /* visited entries of a larger mapping, the first ones */
  MAX_LOOKS = 1024,      /* values visited for one call, which bounds its cost */
  MAX_TOKENS = 2048,     /* tokens in one row */
  MAX_SIGNATURES = 1 << 16, /* rows remembered, and */
  MAX_ARENA = 1 << 20,   /* their tokens, 8 MiB; then the table is emptied, so that memory stays bounded */
  MAX_NAMES = 1 << 16,   /* names kept; later ones are `?` */
  MAX_TYPES = 4096,      /* types with a cached kind */
  MAX_TENSOR_KINDS = 64, /* cached pairs of dtype and device */
  RECENT_NAMES = 256,    /* names cached by address */
};

/* ---- DLPack 1.x's description of a tensor (dmlc/dlpack, dlpack.h): a stable interface that torch has since 2.10. */

enum { DL_CPU = 1, DL_PINNED = 3 }; /* `device_type` of memory of the host */

typedef struct {
  void *data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} DLTensor;

typedef struct {
  uint32_t major, minor;
  void *prev_api;
  void *managed_tensor_allocator, *managed_tensor_from_py_object, *managed_tensor_to_py_object;
  int (*dltensor_from_py_object)(void *object, DLTensor *out);
  void *current_work_stream;
} DLPackExchangeAPI;

typedef struct {
  int64_t *items;
  size_t used, room;
} Numbers;

typedef struct {
  uint64_t hash;
  size_t at; /* index in the arena */
  int32_t length, number;
} Signature; /* length 0: a free slot */

typedef struct {
  PyTypeObject *tensor_type, *parameter_type;
  PyObject *kind_of;     /* (type) -> its kind */
  PyObject *unpack;      /* (value) -> dict or list of its content, for UNPACK_KIND */
  PyObject *tensor_row;  /* (tensor) -> (number of its dtype and device, *sizes), or None */
  PyObject *tensor_kind; /* (tensor) -> number of its dtype and device */
  PyObject *names;       /* dict, name -> its number; new names are added */
  struct {
    PyObject *name; /* owned */
    int64_t number;
  } recent[RECENT_NAMES]; /* names by address: a keyword is the same object at each call */
  PyObject *types;       /* list of the types in `kinds`, kept alive so that no other gets the address of one */
  PointerTable kinds;
  struct {
    int64_t device, dtype;
    int32_t number;
  } tensor_kinds[MAX_TENSOR_KINDS];
  int tensor_kind_count, tensor_kind_last;
  int (*dltensor)(void *, DLTensor *);
  int refused, refusals_to_skip;
  Signature *signatures;
  size_t signature_count, signature_mask;
  Numbers arena, fresh; /* tokens of the known rows; rows not yet written to disk */
  int64_t next_number;
} Describer;

/* Buffer of the row being written. Each thread keeps one, so that calls write the same few cache lines each time. */
typedef struct {
  int in_use;
  int length;
  int full;  /* whether the description did not fit and is cut off */
  int looks; /* values that may still be visited */
  int device; /* index of the device of the first tensor on an accelerator; -1 for none */
  int layer;
  int depth;
  const void *above[MAX_NESTING + 1]; /* containers around the current value, to detect cycles */
  int64_t tokens[MAX_TOKENS];
} Row;

/* Returns 0, or -1 with an exception set. */
int describer_init(Describer *describer);
int describer_traverse(Describer *describer, visitproc visit, void *arg);
void describer_clear(Describer *describer);
void describer_free(Describer *describer);

/* Returns the number of a call's arguments: `count` positional ones, and keyword arguments as names behind them (as in
   a vectorcall) or as a dict; either may be NULL. In a call inside layer `layer` only that layer's part of a cache is
   described; -1 for none. `row` is the thread's buffer; if it is in use, because reading a value has called a module,
   the call is left without a description. Returns -1 only for an exception to be propagated, such as Ctrl-C. */
int64_t describe_inputs(Describer *describer, Row *row, PyObject *const *args, Py_ssize_t count, PyObject *names,
                        PyObject *keywords, int layer);

/* Returns the number of a call's result; otherwise as describe_inputs. */
int64_t describe_output(Describer *describer, Row *row, PyObject *output, int layer);

/* Returns the rows that are new since the last call, as bytes of int64: number, length, tokens. */
PyObject *describer_take(Describer *describer);

/* Returns 1 if an exception is set that must be propagated (KeyboardInterrupt and the like); clears any other. */
int must_go_on(void);

#endif
