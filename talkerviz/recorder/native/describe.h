/* Descriptions of a call's tensors: a row of whole numbers for each, and a number for each different row.

   A row is (see trace/tensor_rows.py, which reads them):
       INPUTS, items of the positional arguments, entries of the keyword arguments; or OUTPUT, a value.
   A value that holds tensors is one of
       TENSOR, number of its dtype and device, number of dimensions, sizes;
       SEQUENCE, items;
       MAPPING, entries;
   and a value that holds none leaves nothing. Items are
       0 where all are looked at, else twice the length, and 1 more where few are; for each different item a mask of the
       places looked at that hold it, and the value; then END;
   or, of a list with one item for each layer, the one of the layer that the call is in, whichever that is:
       -1, 1, the value, END.
   Entries are for each name: 1 + number of the name, the value; then END.

   Python is asked only for what it alone knows, once for each type, name, and pair of dtype and device, and for each
   tensor that is of no plain type. No Python object is made and none is kept, so a recording gives the garbage collector
   nothing to do. Everything that is looked at is owned while Python code may run: another thread, or code that a lookup
   itself runs, may change any container meanwhile. */

#ifndef TALKERVIZ_DESCRIBE_H
#define TALKERVIZ_DESCRIBE_H

#include "platform.h"
#include "pointer_table.h"

/* How a type's values are looked through; recorder/tensor_signatures.py's `Kind` has the same numbers. */
enum { NOTHING, TENSOR_KIND, SEQUENCE_KIND, MAPPING_KIND, OBJECT_KIND, CACHE_KIND, UNPACK_KIND };
enum { END, TENSOR, SEQUENCE, MAPPING, INPUTS, OUTPUT };
enum {
  NO_TENSORS = 0,        /* the number of a call that has none */
  MAX_NESTING = 8,       /* containers inside each other */
  MAX_ITEMS = 32,        /* of a longer sequence the first and the last half of so many are looked at, and */
  MAX_LISTED = 8,        /* of a list of tensors, which may grow call by call */
  MERGED_ITEMS = 8,      /* equal items of a longer sequence are described once */
  MAX_ENTRIES = 256,     /* of a larger mapping the first so many */
  MAX_LOOKS = 1024,      /* values looked at for one call */
  MAX_TOKENS = 2048,     /* in one row */
  MAX_SIGNATURES = 1 << 16,
  MAX_ARENA = 1 << 20,   /* tokens that are known again: 8 MiB */
  MAX_NAMES = 1 << 16,
  MAX_TYPES = 4096,
  MAX_TENSOR_KINDS = 64,
  RECENT_NAMES = 256,
};

/* ---- What DLPack 1.x says of a tensor (dmlc/dlpack, dlpack.h): a stable interface that torch hands out since 2.10. */

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
  size_t at; /* in the arena */
  int32_t length, number;
} Signature; /* length 0: a free place */

typedef struct {
  PyTypeObject *tensor_type, *parameter_type;
  PyObject *kind_of;     /* (type) -> its kind */
  PyObject *unpack;      /* (value) -> a dict or list of what is in it, for UNPACK_KIND */
  PyObject *tensor_row;  /* (tensor) -> (number of its dtype and device, *sizes), or None */
  PyObject *tensor_kind; /* (tensor) -> the number of its dtype and device */
  PyObject *names;       /* name -> its number; new ones are added here */
  struct {
    PyObject *name; /* owned */
    int64_t number;
  } recent[RECENT_NAMES]; /* the same by address, for names that are one object each time */
  PyObject *types;       /* types in `kinds`, so that no other gets the address of one */
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
  Numbers arena, fresh; /* tokens of the known rows; rows that are yet to be written away */
  int64_t next_number;
} Describer;

/* A row as it is written. One for each thread, kept: the few lines of memory that a call writes are the same each time. */
typedef struct {
  int in_use;
  int length;
  int full;  /* it did not fit: what is there is all there will be */
  int looks; /* that are left */
  int layer;
  int depth;
  const void *above[MAX_NESTING + 1]; /* the containers around a value: it may be one of them */
  int64_t tokens[MAX_TOKENS];
} Row;

/* 0, or -1 with an exception set. */
int describer_init(Describer *describer);
int describer_traverse(Describer *describer, visitproc visit, void *arg);
void describer_clear(Describer *describer);
void describer_free(Describer *describer);

/* The number of a call's arguments: `count` positional ones, and keyword arguments as names behind them (as in a
   vectorcall) or else as a dict, either of which may be NULL. In a call inside layer `layer` only that layer's part of a
   cache is described; -1 for none. `row` is the thread's; one that is in use, since looking at a value has called a
   module, leaves the call without a description. Returns -1 only for an exception that must go on, such as Ctrl-C. */
int64_t describe_inputs(Describer *describer, Row *row, PyObject *const *args, Py_ssize_t count, PyObject *names,
                        PyObject *keywords, int layer);

/* The number of what a call returned. */
int64_t describe_output(Describer *describer, Row *row, PyObject *output, int layer);

/* New rows since the last time, as bytes of int64: number, length, tokens. */
PyObject *describer_take(Describer *describer);

/* 1 where an exception is set that must go on; any other is cleared. */
int must_go_on(void);

#endif
