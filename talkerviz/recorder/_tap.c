/* The tap: what every call of a watched module goes through, in C.

   The same as tap.py, which says what it does and is the reference that the tests hold this against; torch is not
   needed to build it. It is a memo in front of Python: a list of tensors is numbered by Python when it is first seen,
   and found again here by its shapes, dtypes, devices and nesting, without making a Python object of any of them.

   Where a compiler, Linux or the interpreter's lock is missing, this is not built and tap.py does the work. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <time.h>

#ifndef __linux__
#error "the clock below is perf_counter's on Linux only"
#endif
#ifdef Py_GIL_DISABLED
#error "the tables below are guarded by the interpreter's lock"
#endif

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

/* ---- A table from pointers to small numbers. */

typedef struct {
  void *key;
  int32_t value;
} Slot;

typedef struct {
  Slot *slots;
  size_t used, mask; /* mask + 1 slots, at most half of them used */
} Table;

static inline size_t pointer_hash(const void *pointer) {
  return (size_t)(((uintptr_t)pointer >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 20);
}

static int32_t table_get(const Table *table, const void *key) {
  if (table->slots == NULL) return -1;
  for (size_t at = pointer_hash(key) & table->mask;; at = (at + 1) & table->mask) {
    if (table->slots[at].key == key) return table->slots[at].value;
    if (table->slots[at].key == NULL) return -1;
  }
}

static int table_put(Table *table, void *key, int32_t value) {
  if (table->slots == NULL || table->used * 2 > table->mask) {
    size_t size = table->slots == NULL ? 64 : (table->mask + 1) * 2;
    Table grown = {calloc(size, sizeof(Slot)), 0, size - 1};
    if (grown.slots == NULL) return -1;
    for (size_t at = 0; table->slots != NULL && at <= table->mask; at++)
      if (table->slots[at].key != NULL) table_put(&grown, table->slots[at].key, table->slots[at].value);
    free(table->slots);
    *table = grown;
  }
  size_t at = pointer_hash(key) & table->mask;
  while (table->slots[at].key != NULL && table->slots[at].key != key) at = (at + 1) & table->mask;
  if (table->slots[at].key == NULL) table->used++;
  table->slots[at] = (Slot){key, value};
  return 0;
}

/* ---- The tap's parts. */

enum { NOTHING, TENSOR, SEQUENCE, MAPPING, ATTRIBUTES, ASK_PYTHON }; /* what tensors.py's `kind_of` answers */
enum { MARK = 1 << 30, NO_TENSORS = 0, WIDTH = 3, MAX_NESTING = 8, MAX_TOKENS = 512, MAX_SIGNATURES = 1 << 16 };

typedef struct {
  PyObject *module; /* NULL where it is not kept alive */
  int32_t number; /* -1: a landmark that is not recorded */
  int landmark;
} Watched;

typedef struct {
  uint64_t hash;
  int32_t length, number;
  int64_t *tokens; /* NULL: a free place */
} Signature;

typedef struct {
  int64_t *numbers;
  Py_ssize_t used, room;
} Log;

typedef struct {
  PyObject_HEAD vectorcallfunc vectorcall;
  PyObject *below, *of_inputs, *of_output, *kind_of, *tracing, *entered, *left, *failed, *started, *full, *stamp;
  PyObject *keep; /* what a pointer in a table stands for, so that no other object takes its place */
  int timed;
  Py_ssize_t limit;
  Table places, kinds; /* module -> index in `watched`; type -> kind */
  Watched *watched;
  Py_ssize_t watched_count;
  Signature *signatures;
  size_t signature_count, signature_mask;
  Log **logs;
  Py_ssize_t log_count;
  int (*dltensor)(void *, DLTensor *);
  int refused;
  PyTypeObject *tensor_type, *parameter_type;
} Tap;

/* The log of this thread in the tap that it met last. A thread begins with zeroes, whatever number the system gives it. */
static _Thread_local struct {
  uint64_t tap;
  Log *log;
} latest;
static uint64_t taps_made; /* names a tap for as long as the process lives, as its address does not */

typedef struct {
  Tap base;
  uint64_t name;
} NamedTap;

static PyObject *name_shape, *name_dtype, *name_device;

static int64_t now_ns(const Tap *tap) {
  if (!tap->timed) return -1;
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int push(Log *log, int64_t what, int64_t tensors, int64_t time) {
  if (log->used + WIDTH > log->room) {
    Py_ssize_t room = log->room ? log->room * 2 : 4096;
    int64_t *numbers = realloc(log->numbers, (size_t)room * sizeof(int64_t));
    if (numbers == NULL) {
      PyErr_NoMemory();
      return -1;
    }
    log->numbers = numbers;
    log->room = room;
  }
  int64_t *at = log->numbers + log->used;
  at[0] = what;
  at[1] = tensors;
  at[2] = time;
  log->used += WIDTH;
  return 0;
}

static int push_mark(Tap *tap, Log *log, PyObject *answer) {
  if (answer == NULL) return -1;
  long mark = PyLong_AsLong(answer);
  Py_DECREF(answer);
  if (mark == -1 && PyErr_Occurred()) return -1;
  return mark < 0 ? 0 : push(log, MARK, mark, now_ns(tap));
}

static Log *log_of_thread(Tap *tap) {
  uint64_t name = ((NamedTap *)tap)->name;
  if (latest.tap == name) return latest.log;
  PyObject *of_thread = PyThreadState_GetDict(), *number;
  if (of_thread == NULL) {
    PyErr_SetString(PyExc_RuntimeError, "a thread without a state");
    return NULL;
  }
  Log *log = NULL;
  if ((number = PyDict_GetItemWithError(of_thread, (PyObject *)tap)) != NULL) {
    log = tap->logs[PyLong_AsSsize_t(number)];
  } else {
    if (PyErr_Occurred()) return NULL;
    Log **logs = realloc(tap->logs, (size_t)(tap->log_count + 1) * sizeof(Log *));
    if (logs != NULL) tap->logs = logs;
    if (logs == NULL || (log = calloc(1, sizeof(Log))) == NULL) {
      PyErr_NoMemory();
      return NULL;
    }
    tap->logs[tap->log_count++] = log;
    number = PyLong_FromSsize_t(tap->log_count - 1);
    if (number == NULL || PyDict_SetItem(of_thread, (PyObject *)tap, number) < 0) {
      Py_XDECREF(number);
      return NULL;
    }
    Py_DECREF(number);
    if (push_mark(tap, log, PyObject_CallNoArgs(tap->started)) < 0) return NULL;
  }
  latest.tap = name;
  latest.log = log;
  return log;
}

/* ---- Signatures: a call's tensors as a row of whole numbers. */

typedef struct {
  int64_t tokens[MAX_TOKENS];
  int length;
} Row;

/* All return 0, or -1 where Python must look, or where an exception is set. */

static inline int add(Row *row, int64_t token) {
  if (row->length == MAX_TOKENS) return -1;
  row->tokens[row->length++] = token;
  return 0;
}

static int kind_of(Tap *tap, PyTypeObject *type) {
  int32_t kind = table_get(&tap->kinds, type);
  if (kind >= 0) return kind;
  PyObject *answer = PyObject_CallOneArg(tap->kind_of, (PyObject *)type);
  kind = answer == NULL ? -1 : (int32_t)PyLong_AsLong(answer);
  Py_XDECREF(answer);
  if (kind < 0 || PyList_Append(tap->keep, (PyObject *)type) < 0 || table_put(&tap->kinds, type, kind) < 0)
    return ASK_PYTHON; /* with an exception set, Ctrl-C most likely */
  return kind;
}

/* While torch.jit traces, even to read a shape becomes an operator of what it makes. DLPack does not. */
static int is_tracing(Tap *tap) {
  PyObject *answer = PyObject_CallNoArgs(tap->tracing);
  int tracing = answer != NULL && PyObject_IsTrue(answer);
  Py_XDECREF(answer);
  return tracing || answer == NULL;
}

static int add_tensor(Tap *tap, PyObject *tensor, Row *row) {
  PyTypeObject *type = Py_TYPE(tensor);
  if (tap->dltensor != NULL && (type == tap->tensor_type || type == tap->parameter_type)) {
    DLTensor seen;
    if (tap->dltensor(tensor, &seen) == 0) {
      if (row->length + 4 + seen.ndim > MAX_TOKENS) return -1;
      int64_t *at = row->tokens + row->length;
      *at++ = TENSOR;
      *at++ = (int64_t)seen.device_type << 32 | (uint32_t)seen.device_id;
      *at++ = (int64_t)seen.lanes << 16 | seen.bits << 8 | seen.code;
      *at++ = seen.ndim;
      memcpy(at, seen.shape, (size_t)seen.ndim * sizeof(int64_t));
      row->length += 4 + seen.ndim;
      return 0;
    }
    /* DLPack does not know its device or dtype: ask the tensor itself. Hearing so costs most of a millisecond, hence
       not for every tensor of, say, the meta device. */
    PyErr_Clear();
    if (++tap->refused == 8) tap->dltensor = NULL;
  }
  if (is_tracing(tap)) return -1;
  PyObject *shape = PyObject_GetAttr(tensor, name_shape), *dtype = NULL, *device = NULL;
  int failed = -1;
  if (shape != NULL && PyTuple_Check(shape) && (dtype = PyObject_GetAttr(tensor, name_dtype)) != NULL &&
      (device = PyObject_GetAttr(tensor, name_device)) != NULL) {
    /* A dtype is an object for life; a device's hash holds its type and index. */
    failed = add(row, -TENSOR) | add(row, (int64_t)PyObject_Hash(device)) | add(row, (int64_t)(intptr_t)dtype) |
             add(row, PyTuple_GET_SIZE(shape));
    for (Py_ssize_t i = 0; !failed && i < PyTuple_GET_SIZE(shape); i++) {
      PyObject *size = PyTuple_GET_ITEM(shape, i);
      failed = PyLong_CheckExact(size) ? add(row, PyLong_AsLongLong(size)) : -1;
    }
  }
  Py_XDECREF(shape);
  Py_XDECREF(dtype);
  Py_XDECREF(device);
  if (PyErr_Occurred()) {
    if (PyErr_ExceptionMatches(PyExc_Exception)) PyErr_Clear(); /* it has no such thing: Python knows what to say */
    failed = -1;
  }
  return failed;
}

static int add_mapping(Tap *tap, PyObject *dict, Row *row, int level);

static int add_value(Tap *tap, PyObject *value, Row *row, int level) {
  PyTypeObject *type = Py_TYPE(value);
  if (type == tap->tensor_type) return add_tensor(tap, value, row);
  switch (kind_of(tap, type)) {
    case NOTHING:
      return add(row, NOTHING);
    case TENSOR:
      return add_tensor(tap, value, row);
    case SEQUENCE: {
      if (level > MAX_NESTING || !(PyTuple_Check(value) || PyList_Check(value))) return -1;
      Py_ssize_t size = PySequence_Fast_GET_SIZE(value);
      int failed = add(row, SEQUENCE) | add(row, size);
      for (Py_ssize_t i = 0; !failed && i < PySequence_Fast_GET_SIZE(value); i++)
        failed = add_value(tap, PySequence_Fast_GET_ITEM(value, i), row, level + 1);
      return failed;
    }
    case MAPPING:
      return PyDict_Check(value) ? add_mapping(tap, value, row, level) : -1;
    case ATTRIBUTES: {
      PyObject *dict = PyObject_GenericGetDict(value, NULL);
      if (dict == NULL) {
        PyErr_Clear();
        return -1;
      }
      int failed = add_mapping(tap, dict, row, level);
      Py_DECREF(dict);
      return failed;
    }
    default:
      return -1;
  }
}

static int add_mapping(Tap *tap, PyObject *dict, Row *row, int level) {
  if (level > MAX_NESTING) return -1;
  PyObject *name, *value;
  Py_ssize_t position = 0;
  int failed = add(row, MAPPING) | add(row, PyDict_GET_SIZE(dict));
  while (!failed && PyDict_Next(dict, &position, &name, &value)) {
    /* A name is known by its address; a new object of the same letters is only looked up in Python again. */
    failed = PyUnicode_CheckExact(name) ? add(row, (int64_t)(intptr_t)name) : -1;
    if (!failed) failed = add_value(tap, value, row, level + 1);
  }
  return failed;
}

static uint64_t row_hash(const Row *row) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (int i = 0; i < row->length; i++) {
    hash = (hash ^ (uint64_t)row->tokens[i]) * UINT64_C(0x9E3779B97F4A7C15);
    hash ^= hash >> 32;
  }
  return hash;
}

static Signature *find(Tap *tap, const Row *row, uint64_t hash) {
  for (size_t at = hash & tap->signature_mask;; at = (at + 1) & tap->signature_mask) {
    Signature *here = &tap->signatures[at];
    if (here->tokens == NULL) return here;
    if (here->hash == hash && here->length == row->length &&
        memcmp(here->tokens, row->tokens, (size_t)row->length * sizeof(int64_t)) == 0)
      return here;
  }
}

/* Keep the names in a value alive, for the tokens that are their addresses. */
static int keep_names(Tap *tap, PyObject *value, int level) {
  PyObject *dict = NULL;
  int failed = 0;
  switch (level > MAX_NESTING ? NOTHING : kind_of(tap, Py_TYPE(value))) {
    case SEQUENCE:
      for (Py_ssize_t i = 0; !failed && i < PySequence_Fast_GET_SIZE(value); i++)
        failed = keep_names(tap, PySequence_Fast_GET_ITEM(value, i), level + 1);
      return failed;
    case MAPPING:
      dict = Py_NewRef(value);
      break;
    case ATTRIBUTES:
      dict = PyObject_GenericGetDict(value, NULL);
      break;
  }
  PyObject *name, *inner;
  Py_ssize_t position = 0;
  while (dict != NULL && !failed && PyDict_Next(dict, &position, &name, &inner))
    failed = PyList_Append(tap->keep, name) < 0 || keep_names(tap, inner, level + 1);
  Py_XDECREF(dict);
  return failed || PyErr_Occurred() != NULL;
}

static int remember(Tap *tap, const Row *row, uint64_t hash, int32_t number) {
  if (tap->signature_count >= MAX_SIGNATURES) return 0; /* a run that never repeats: stop keeping, ask Python */
  if (tap->signature_count * 2 > tap->signature_mask) {
    size_t size = (tap->signature_mask + 1) * 2, old = tap->signature_mask + 1;
    Signature *before = tap->signatures, *grown = calloc(size, sizeof(Signature));
    if (grown == NULL) return -1;
    tap->signatures = grown;
    tap->signature_mask = size - 1;
    for (size_t i = 0; i < old; i++) {
      if (before[i].tokens == NULL) continue;
      size_t at = before[i].hash & tap->signature_mask;
      while (grown[at].tokens != NULL) at = (at + 1) & tap->signature_mask;
      grown[at] = before[i];
    }
    free(before);
  }
  int64_t *tokens = malloc((size_t)row->length * sizeof(int64_t));
  if (tokens == NULL) return -1;
  memcpy(tokens, row->tokens, (size_t)row->length * sizeof(int64_t));
  *find(tap, row, hash) = (Signature){hash, row->length, number, tokens};
  tap->signature_count++;
  return 0;
}

static int64_t number_from(PyObject *answer) {
  if (answer == NULL) return -1;
  int64_t number = PyLong_AsLongLong(answer);
  Py_DECREF(answer);
  return number;
}

/* The number of a row that is known, or NO_TENSORS while torch.jit traces; else -1, with `ask` set where Python is to be
   asked, and an exception where not. */
static int64_t look_up(Tap *tap, const Row *row, int failed, uint64_t *hash, int *ask) {
  *ask = 0;
  if (!failed) {
    Signature *found = find(tap, row, *hash = row_hash(row));
    if (found->tokens != NULL) return found->number;
  }
  if (PyErr_Occurred()) return -1;
  if (is_tracing(tap)) return PyErr_Occurred() ? -1 : NO_TENSORS;
  *ask = 1;
  return -1;
}

/* The number of a call's arguments; -1 with an exception set. */
static int64_t inputs_number(Tap *tap, PyObject *const *args, Py_ssize_t count, PyObject *names) {
  Row row;
  row.length = 0;
  Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
  int failed = add(&row, count) | add(&row, named);
  for (Py_ssize_t i = 0; !failed && i < count; i++) failed = add_value(tap, args[i], &row, 1);
  for (Py_ssize_t i = 0; !failed && i < named; i++) {
    failed = add(&row, (int64_t)(intptr_t)PyTuple_GET_ITEM(names, i));
    if (!failed) failed = add_value(tap, args[count + i], &row, 1);
  }
  uint64_t hash = 0;
  int ask;
  int64_t number = look_up(tap, &row, failed, &hash, &ask);
  if (!ask) return number;
  PyObject *positional = PyTuple_New(count), *keywords = PyDict_New();
  if (positional != NULL && keywords != NULL) {
    for (Py_ssize_t i = 0; i < count; i++) PyTuple_SET_ITEM(positional, i, Py_NewRef(args[i]));
    int bad = 0;
    for (Py_ssize_t i = 0; !bad && i < named; i++)
      bad = PyDict_SetItem(keywords, PyTuple_GET_ITEM(names, i), args[count + i]) < 0;
    if (!bad) number = number_from(PyObject_CallFunctionObjArgs(tap->of_inputs, positional, keywords, NULL));
    if (number >= 0 && !failed &&
        (keep_names(tap, positional, 0) || keep_names(tap, keywords, 0) || remember(tap, &row, hash, (int32_t)number))) {
      if (!PyErr_Occurred()) PyErr_NoMemory();
      number = -1;
    }
  }
  Py_XDECREF(positional);
  Py_XDECREF(keywords);
  return number;
}

/* The number of what a call returned; -1 with an exception set. */
static int64_t output_number(Tap *tap, PyObject *output) {
  Row row;
  row.length = 0;
  int failed = add(&row, -1) | add_value(tap, output, &row, 0);
  uint64_t hash = 0;
  int ask;
  int64_t number = look_up(tap, &row, failed, &hash, &ask);
  if (!ask) return number;
  number = number_from(PyObject_CallOneArg(tap->of_output, output));
  if (number >= 0 && !failed && (keep_names(tap, output, 0) || remember(tap, &row, hash, (int32_t)number))) {
    if (!PyErr_Occurred()) PyErr_NoMemory();
    number = -1;
  }
  return number;
}

/* ---- The call itself. */

static int landmark_entered(Tap *tap, Log *log, PyObject *const *args, Py_ssize_t count, PyObject *names) {
  PyObject *positional = PyTuple_New(count - 1), *keywords = PyDict_New();
  int bad = positional == NULL || keywords == NULL;
  for (Py_ssize_t i = 1; !bad && i < count; i++) {
    Py_INCREF(args[i]);
    PyTuple_SET_ITEM(positional, i - 1, args[i]);
  }
  for (Py_ssize_t i = 0; !bad && names != NULL && i < PyTuple_GET_SIZE(names); i++)
    bad = PyDict_SetItem(keywords, PyTuple_GET_ITEM(names, i), args[count + i]) < 0;
  if (!bad) {
    PyObject *mark = PyObject_CallFunctionObjArgs(tap->entered, args[0], positional, keywords, NULL);
    bad = push_mark(tap, log, mark) < 0;
  }
  Py_XDECREF(positional);
  Py_XDECREF(keywords);
  return bad ? -1 : 0;
}

static int stamp(Tap *tap, PyObject *beginning) {
  if (tap->stamp == Py_None) return 0;
  PyObject *answer = PyObject_CallOneArg(tap->stamp, beginning);
  Py_XDECREF(answer);
  return answer == NULL ? -1 : 0;
}

/* After an end: the mark of a landmark, and room in the log. An exception that is being raised goes on. */
static int leave(Tap *tap, Log *log, const Watched *watched, PyObject *module) {
  if (watched->landmark &&
      push_mark(tap, log, PyObject_CallOneArg(tap->left, module)) < 0)
    return -1;
  if (log->used < tap->limit) return 0;
  PyObject *answer = PyObject_CallNoArgs(tap->full);
  Py_XDECREF(answer);
  return answer == NULL ? -1 : 0;
}

/* What goes wrong here must not hide what went wrong in the model; Ctrl-C may. */
static int interrupted(void) {
  if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception)) return 1;
  PyErr_Clear();
  return 0;
}

static void fail(Tap *tap, Log *log, const Watched *watched, PyObject *module, int64_t time) {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  int64_t error = number_from(PyObject_CallOneArg(tap->failed, type == NULL ? Py_None : type));
  if (PyErr_Occurred()) error = NO_TENSORS;
  int stopped = interrupted();
  if (watched->number >= 0) {
    PyObject *held[3] = {NULL, NULL, NULL};
    if (stopped) PyErr_Fetch(&held[0], &held[1], &held[2]);
    stamp(tap, Py_False);
    if (!stopped) stopped = interrupted();
    else PyErr_Clear();
    if (held[0] != NULL) PyErr_Restore(held[0], held[1], held[2]);
    if (push(log, -1 - watched->number, error, time) < 0 && !stopped) PyErr_Clear();
  }
  if (!stopped) {
    leave(tap, log, watched, module);
    stopped = interrupted();
  }
  if (stopped) {
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
  } else {
    PyErr_Restore(type, value, traceback);
  }
}

static PyObject *tap_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *names) {
  Tap *tap = (Tap *)self;
  Py_ssize_t count = PyVectorcall_NARGS(nargsf);
  int32_t place = count ? table_get(&tap->places, args[0]) : -1;
  if (place < 0) return PyObject_Vectorcall(tap->below, args, nargsf, names);
  /* By value: a replica made meanwhile may move the array. */
  Watched watched = tap->watched[place];
  Log *log = log_of_thread(tap);
  if (log == NULL) return NULL;
  if (watched.landmark && landmark_entered(tap, log, args, count, names) < 0) return NULL;
  if (watched.number >= 0) {
    int64_t inputs = inputs_number(tap, args + 1, count - 1, names);
    if (inputs < 0 || stamp(tap, Py_True) < 0 || push(log, watched.number, inputs, now_ns(tap)) < 0) return NULL;
  }
  Py_INCREF(self); /* the recording may end inside */
  PyObject *output = PyObject_Vectorcall(tap->below, args, nargsf, names);
  int64_t time = now_ns(tap);
  if (output == NULL) {
    fail(tap, log, &watched, args[0], time);
  } else {
    int bad = 0;
    if (watched.number >= 0) {
      int64_t outputs = stamp(tap, Py_False) < 0 ? -1 : output_number(tap, output);
      bad = outputs < 0; /* Ctrl-C, most likely; the call has an end all the same */
      bad |= push(log, -1 - watched.number, bad ? NO_TENSORS : outputs, time) < 0;
    }
    if (bad || leave(tap, log, &watched, args[0]) < 0) Py_CLEAR(output);
  }
  Py_DECREF(self);
  return output;
}

/* ---- The object. */

static PyObject *tap_watch(Tap *tap, PyObject *args) {
  Watched made;
  int number, keep;
  if (!PyArg_ParseTuple(args, "Oipp", &made.module, &number, &made.landmark, &keep)) return NULL;
  made.number = number;
  Watched *watched = realloc(tap->watched, (size_t)(tap->watched_count + 1) * sizeof(Watched));
  if (watched == NULL) return PyErr_NoMemory();
  tap->watched = watched;
  if (table_put(&tap->places, made.module, (int32_t)tap->watched_count) < 0) return PyErr_NoMemory();
  if (keep) Py_INCREF(made.module);
  else made.module = NULL;
  watched[tap->watched_count++] = made;
  Py_RETURN_NONE;
}

static PyObject *tap_unwatch(Tap *tap, PyObject *identity) {
  void *module = PyLong_AsVoidPtr(identity);
  if (module == NULL && PyErr_Occurred()) return NULL;
  /* Its place stays; should another object get the address and be watched, it gets the place. */
  if (table_get(&tap->places, module) >= 0) table_put(&tap->places, module, -1);
  Py_RETURN_NONE;
}

static PyObject *tap_put(Tap *tap, PyObject *args) {
  long long what, tensors, time;
  if (!PyArg_ParseTuple(args, "LLL", &what, &tensors, &time)) return NULL;
  Log *log = log_of_thread(tap);
  if (log == NULL || push(log, what, tensors, time) < 0) return NULL;
  Py_RETURN_NONE;
}

static PyObject *tap_take(Tap *tap, PyObject *thread) {
  Py_ssize_t number = PyLong_AsSsize_t(thread);
  if (number < 0 || number >= tap->log_count) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_IndexError, "no such thread");
    return NULL;
  }
  Log *log = tap->logs[number];
  PyObject *taken = PyBytes_FromStringAndSize((char *)log->numbers, log->used * (Py_ssize_t)sizeof(int64_t));
  if (taken != NULL) log->used = 0;
  return taken;
}

static PyObject *tap_thread(Tap *tap, PyObject *Py_UNUSED(ignored)) {
  Log *log = log_of_thread(tap);
  for (Py_ssize_t number = 0; log != NULL && number < tap->log_count; number++)
    if (tap->logs[number] == log) return PyLong_FromSsize_t(number);
  return NULL;
}

static PyObject *tap_threads(Tap *tap, PyObject *Py_UNUSED(ignored)) { return PyLong_FromSsize_t(tap->log_count); }

/* From here on every call goes straight on; what the tap held is let go, but for its callables: calls may be inside. */
static PyObject *tap_close(Tap *tap, PyObject *Py_UNUSED(ignored)) {
  free(tap->places.slots);
  tap->places = (Table){NULL, 0, 0};
  PyObject *of_thread = PyThreadState_GetDict();
  if (of_thread != NULL && PyDict_GetItemWithError(of_thread, (PyObject *)tap) != NULL)
    PyDict_DelItem(of_thread, (PyObject *)tap);
  PyErr_Clear();
  Py_RETURN_NONE;
}

static PyObject **callables(Tap *tap, int at) {
  PyObject **all[] = {&tap->below,  &tap->of_inputs, &tap->of_output, &tap->kind_of, &tap->tracing,
                      &tap->entered, &tap->left,     &tap->failed,    &tap->started, &tap->full,    &tap->stamp};
  return at < (int)(sizeof(all) / sizeof(*all)) ? all[at] : NULL;
}

static int tap_traverse(Tap *tap, visitproc visit, void *arg) {
  for (int i = 0; callables(tap, i) != NULL; i++) Py_VISIT(*callables(tap, i));
  for (Py_ssize_t i = 0; i < tap->watched_count; i++) {
    Py_VISIT(tap->watched[i].module);
  }
  Py_VISIT(tap->keep);
  Py_VISIT(Py_TYPE(tap));
  return 0;
}

static int tap_clear(Tap *tap) {
  for (int i = 0; callables(tap, i) != NULL; i++) Py_CLEAR(*callables(tap, i));
  while (tap->watched_count > 0) {
    Watched last = tap->watched[--tap->watched_count];
    Py_XDECREF(last.module);
  }
  Py_CLEAR(tap->keep);
  return 0;
}

static void tap_dealloc(Tap *tap) {
  PyObject_GC_UnTrack(tap);
  tap_clear(tap);
  free(tap->places.slots);
  free(tap->kinds.slots);
  free(tap->watched);
  for (size_t i = 0; tap->signatures != NULL && i <= tap->signature_mask; i++) free(tap->signatures[i].tokens);
  free(tap->signatures);
  for (Py_ssize_t i = 0; i < tap->log_count; i++) {
    free(tap->logs[i]->numbers);
    free(tap->logs[i]);
  }
  free(tap->logs);
  Py_XDECREF(tap->tensor_type);
  Py_XDECREF(tap->parameter_type);
  PyTypeObject *type = Py_TYPE(tap);
  type->tp_free((PyObject *)tap);
  Py_DECREF(type);
}

/* torch's DLPack interface, where this torch has one that we can read. */
static void find_dlpack(Tap *tap) {
  PyObject *capsule = PyObject_GetAttrString((PyObject *)tap->tensor_type, "__dlpack_c_exchange_api__");
  const DLPackExchangeAPI *api = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  if (api != NULL && api->major == 1) tap->dltensor = api->dltensor_from_py_object;
  Py_XDECREF(capsule); /* the interface lives as long as torch does */
  PyErr_Clear();
}

static PyObject *tap_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  static char *names[] = {"tensor", "parameter", "below",  "of_inputs", "of_output", "kind_of", "tracing",
                          "entered", "left",     "failed", "started",   "full",      "stamp",   "timed",   "limit", NULL};
  PyObject *tensor, *parameter, *given[11];
  int timed;
  Py_ssize_t limit;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O!OOOOOOOOOOOpn", names, &PyType_Type, &tensor, &PyType_Type,
                                   &parameter, &given[0], &given[1], &given[2], &given[3], &given[4], &given[5],
                                   &given[6], &given[7], &given[8], &given[9], &given[10], &timed, &limit))
    return NULL;
  Tap *tap = (Tap *)type->tp_alloc(type, 0);
  if (tap == NULL) return NULL;
  ((NamedTap *)tap)->name = ++taps_made;
  tap->vectorcall = tap_call;
  for (int i = 0; callables(tap, i) != NULL; i++) *callables(tap, i) = Py_NewRef(given[i]);
  tap->tensor_type = (PyTypeObject *)Py_NewRef(tensor);
  tap->parameter_type = (PyTypeObject *)Py_NewRef(parameter);
  tap->timed = timed;
  tap->limit = limit * WIDTH;
  tap->signature_mask = 255;
  tap->signatures = calloc(tap->signature_mask + 1, sizeof(Signature));
  tap->keep = PyList_New(0);
  if (tap->signatures == NULL || tap->keep == NULL) {
    Py_DECREF(tap);
    return PyErr_NoMemory();
  }
  find_dlpack(tap);
  return (PyObject *)tap;
}

/* Bound like a function, so that `module(...)` and `super().__call__(...)` bring the module along. */
static PyObject *tap_get(PyObject *self, PyObject *module, PyObject *Py_UNUSED(type)) {
  return module == NULL || module == Py_None ? Py_NewRef(self) : PyMethod_New(self, module);
}

static PyObject *tap_self(PyObject *self, void *Py_UNUSED(closure)) { return Py_NewRef(self); }

/* A module compiled during a recording keeps its bound `__call__`. Dynamo knows torch's own by its name alone, and would
   compile a frame more around any other. */
static PyObject *tap_of_below(PyObject *self, void *name) { return PyObject_GetAttrString(((Tap *)self)->below, name); }

static PyGetSetDef tap_getters[] = {{"call", tap_self, NULL, "what stands in for nn.Module.__call__", NULL},
                                    {"__name__", tap_of_below, NULL, "that of what it stands in for", "__name__"},
                                    {"__code__", tap_of_below, NULL, "that of what it stands in for", "__code__"},
                                    {NULL}};

static PyMethodDef tap_methods[] = {
    {"watch", (PyCFunction)tap_watch, METH_VARARGS, "watch(module, number, landmark, keep)"},
    {"unwatch", (PyCFunction)tap_unwatch, METH_O, "unwatch(id): forget a module that is not kept"},
    {"put", (PyCFunction)tap_put, METH_VARARGS, "put(what, tensors, time): an event in this thread's log"},
    {"take", (PyCFunction)tap_take, METH_O, "take(thread) -> bytes: the events of a thread, which are let go"},
    {"thread", (PyCFunction)tap_thread, METH_NOARGS, "the number of this thread"},
    {"threads", (PyCFunction)tap_threads, METH_NOARGS, "how many threads there are"},
    {"close", (PyCFunction)tap_close, METH_NOARGS, "watch nothing any more"},
    {NULL}};

static PyMemberDef tap_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Tap, vectorcall), READONLY, NULL}, {NULL}};

static PyType_Slot tap_slots[] = {{Py_tp_new, tap_new},
                                  {Py_tp_dealloc, tap_dealloc},
                                  {Py_tp_traverse, tap_traverse},
                                  {Py_tp_clear, tap_clear},
                                  {Py_tp_call, PyVectorcall_Call},
                                  {Py_tp_descr_get, tap_get},
                                  {Py_tp_methods, tap_methods},
                                  {Py_tp_getset, tap_getters},
                                  {Py_tp_members, tap_members},
                                  {0, NULL}};

static PyType_Spec tap_spec = {"talkerviz.recorder._tap.Tap", sizeof(NamedTap), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                                   Py_TPFLAGS_METHOD_DESCRIPTOR,
                               tap_slots};

static int prepare(PyObject *module) {
  name_shape = PyUnicode_InternFromString("shape");
  name_dtype = PyUnicode_InternFromString("dtype");
  name_device = PyUnicode_InternFromString("device");
  if (name_shape == NULL || name_dtype == NULL || name_device == NULL) return -1;
  PyObject *type = PyType_FromSpec(&tap_spec);
  if (type == NULL) return -1;
  int failed = PyModule_AddObjectRef(module, "Tap", type);
  Py_DECREF(type);
  return failed;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, prepare}, {0, NULL}};
static struct PyModuleDef tap_module = {PyModuleDef_HEAD_INIT, "_tap", NULL, 0, NULL, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__tap(void) { return PyModuleDef_Init(&tap_module); }
