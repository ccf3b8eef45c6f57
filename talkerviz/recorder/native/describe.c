#include "describe.h"

#include <string.h>

int must_go_on(void) {
  if (!PyErr_Occurred()) return 0;
  if (!PyErr_ExceptionMatches(PyExc_Exception)) return 1;
  PyErr_Clear();
  return 0;
}

static int numbers_reserve(Numbers *numbers, size_t more) {
  if (numbers->used + more <= numbers->room) return 0;
  size_t room = numbers->room ? numbers->room : 1024;
  while (room < numbers->used + more) room *= 2;
  int64_t *items = realloc(numbers->items, room * sizeof(int64_t));
  if (items == NULL) return -1;
  numbers->items = items;
  numbers->room = room;
  return 0;
}

/* Tokens of a row before the reserve for the ends of all open containers: a row that is cut off is still readable. */
enum { ROOM = MAX_TOKENS - MAX_NESTING - 8 };

static inline void add(Row *row, int64_t token) {
  if (row->length >= ROOM) row->full = 1;
  else row->tokens[row->length++] = token;
}

static inline void add_end(Row *row) { row->tokens[row->length++] = END; }

/* ---- Tensors. */

/* Returns the number of a pair of device and dtype in DLPack's encoding; -1 with an exception set. */
static int32_t number_of_kind(Describer *d, PyObject *tensor, int64_t device, int64_t dtype) {
  int last = d->tensor_kind_last;
  if (last < d->tensor_kind_count && d->tensor_kinds[last].device == device && d->tensor_kinds[last].dtype == dtype)
    return d->tensor_kinds[last].number;
  for (int i = 0; i < d->tensor_kind_count; i++)
    if (d->tensor_kinds[i].device == device && d->tensor_kinds[i].dtype == dtype) {
      d->tensor_kind_last = i;
      return d->tensor_kinds[i].number;
    }
  PyObject *answer = PyObject_CallOneArg(d->tensor_kind, tensor);
  if (answer == NULL) return -1;
  int32_t number = (int32_t)PyLong_AsLong(answer);
  Py_DECREF(answer);
  if (number >= 0 && d->tensor_kind_count < MAX_TENSOR_KINDS) {
    int place = d->tensor_kind_count++;
    d->tensor_kinds[place].device = device;
    d->tensor_kinds[place].dtype = dtype;
    d->tensor_kinds[place].number = number;
  }
  return number;
}

static int add_asked_tensor(Describer *d, PyObject *tensor, Row *row) {
  PyObject *answer = PyObject_CallOneArg(d->tensor_row, tensor);
  if (answer != NULL && PyTuple_CheckExact(answer)) {
    Py_ssize_t size = PyTuple_GET_SIZE(answer);
    int before = row->length;
    add(row, TENSOR);
    for (Py_ssize_t i = 0; i < size; i++) {
      if (i == 1) add(row, size - 1);
      add(row, PyLong_AsLongLong(PyTuple_GET_ITEM(answer, i)));
    }
    if (size == 1) add(row, 0);
    if (PyErr_Occurred() || row->full) row->length = before;
  }
  Py_XDECREF(answer);
  return must_go_on() ? -1 : 0;
}

static int add_tensor(Describer *d, PyObject *tensor, int plain, Row *row) {
  if (plain && d->dltensor != NULL && d->refusals_to_skip == 0) {
    DLTensor seen;
    if (d->dltensor(tensor, &seen) == 0) {
      int32_t kind = number_of_kind(d, tensor, (int64_t)seen.device_type << 32 | (uint32_t)seen.device_id,
                                    (int64_t)seen.lanes << 16 | seen.bits << 8 | seen.code);
      if (kind < 0) return must_go_on() ? -1 : 0;
      if (row->length + 3 + seen.ndim > ROOM) {
        row->full = 1;
        return 0;
      }
      /* number_of_kind may have run Python code; the tensor is owned, but that code may have resized it. */
      int64_t *at = row->tokens + row->length;
      at[0] = TENSOR;
      at[1] = kind;
      at[2] = seen.ndim;
      memcpy(at + 3, seen.shape, (size_t)seen.ndim * sizeof(int64_t));
      row->length += 3 + seen.ndim;
      if (row->device < 0 && seen.device_type != DL_CPU && seen.device_type != DL_PINNED) row->device = seen.device_id;
      d->refused = 0;
      return 0;
    }
    PyErr_Clear();
    /* DLPack has no code for its device or dtype, as for meta tensors. A refusal costs most of a millisecond, so after
       four in a row the next 10,000 tensors go to Python at once. */
    if (++d->refused >= 4) d->refusals_to_skip = 10000;
  } else if (plain && d->refusals_to_skip > 0) {
    d->refusals_to_skip--;
  }
  return add_asked_tensor(d, tensor, row);
}

/* ---- Containers. */

static int add_value(Describer *d, PyObject *value, Row *row, int of_cache);

static int is_above(const Row *row, const void *container) {
  for (int i = 0; i < row->depth; i++)
    if (row->above[i] == container) return 1;
  return 0;
}

static int enter(Row *row, const void *container) {
  if (row->depth > MAX_NESTING || is_above(row, container)) return 0;
  row->above[row->depth++] = container;
  return 1;
}

/* Adds the items of a tuple or list, or `count` positional arguments if `sequence` is NULL. */
static int add_items(Describer *d, PyObject *sequence, PyObject *const *args, Py_ssize_t count, Row *row, int only) {
  int start = row->length;
  int few = sequence != NULL && PyList_CheckExact(sequence) && Py_TYPE(PyList_GET_ITEM(sequence, 0)) == d->tensor_type;
  Py_ssize_t most = few ? MAX_LISTED : MAX_ITEMS, half = most / 2, looked = count > most ? most : count;
  int starts[MAX_ITEMS], kept = 0;
  add(row, only >= 0 ? -1 : count > most ? 2 * count + few : 0);
  for (Py_ssize_t i = only >= 0 ? looked - 1 : 0; i < looked && !row->full && row->looks > 0; i++) {
    Py_ssize_t place = only >= 0 ? only : i < half || count <= most ? i : count - most + i;
    /* Reading an earlier item may have changed the list. */
    PyObject *item = NULL;
    if (sequence == NULL) item = args[place];
    else if (PyTuple_Check(sequence)) item = PyTuple_GET_ITEM(sequence, place);
    else if (place < PyList_GET_SIZE(sequence)) item = PyList_GET_ITEM(sequence, place);
    if (item == NULL) break;
    int at = row->length;
    Py_INCREF(item);
    add(row, only >= 0 ? 1 : INT64_C(1) << i);
    int failed = add_value(d, item, row, 0);
    Py_DECREF(item);
    if (failed) return -1;
    if (row->length <= at + 1 || row->full) {
      row->length = at;
      continue;
    }
    /* Compared with the four latest distinct items only: lists in which all items differ are short. */
    int length = row->length - at - 1, known = -1;
    for (int k = kept - 1; only < 0 && count > MERGED_ITEMS && known < 0 && k >= 0 && k >= kept - 4; k--) {
      int end = k + 1 < kept ? starts[k + 1] : at;
      if (end - starts[k] - 1 == length &&
          memcmp(row->tokens + starts[k] + 1, row->tokens + at + 1, (size_t)length * sizeof(int64_t)) == 0)
        known = k;
    }
    if (known >= 0) {
      row->tokens[starts[known]] |= INT64_C(1) << i;
      row->length = at;
    } else {
      starts[kept++] = at;
    }
  }
  if (row->length == start + 1) row->length = start;
  else add_end(row);
  return 0;
}

static int add_sequence(Describer *d, PyObject *value, Row *row, int of_cache) {
  Py_ssize_t count = PyTuple_Check(value) ? PyTuple_GET_SIZE(value) : PyList_Check(value) ? PyList_GET_SIZE(value) : 0;
  if (count == 0 || !enter(row, value)) return 0;
  int before = row->length;
  add(row, SEQUENCE);
  int failed = add_items(d, value, NULL, count, row, of_cache && count > 1 && row->layer < count ? row->layer : -1);
  row->depth--;
  if (row->length == before + 1) row->length = before;
  return failed;
}

/* Returns whether a key is a number, None, or a tuple of such keys and strings, so that its str() runs no user code. */
static int is_plain_key(PyObject *key) {
  if (key == Py_None || PyLong_CheckExact(key) || PyFloat_CheckExact(key) || PyBool_Check(key)) return 1;
  if (!PyTuple_CheckExact(key) || PyTuple_GET_SIZE(key) > MAX_LISTED) return 0;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(key); i++) {
    PyObject *part = PyTuple_GET_ITEM(key, i);
    if (!PyUnicode_CheckExact(part) && (PyTuple_CheckExact(part) || !is_plain_key(part))) return 0;
  }
  return 1;
}

/* Returns the number of a name, which may be any key of a dict; -1 with an exception set. */
static int64_t number_of_name(Describer *d, PyObject *key) {
  size_t recent = ((uintptr_t)key >> 4) % RECENT_NAMES;
  if (d->recent[recent].name == key) return d->recent[recent].number;
  PyObject *number = PyUnicode_CheckExact(key) ? PyDict_GetItemWithError(d->names, key) : NULL;
  if (number != NULL) {
    d->recent[recent].number = PyLong_AsLongLong(number);
    Py_XSETREF(d->recent[recent].name, Py_NewRef(key));
    return d->recent[recent].number;
  }
  if (PyErr_Occurred()) return -1;
  /* str() of any other key would run the user's code. */
  PyObject *name = PyUnicode_CheckExact(key) ? Py_NewRef(key)
                   : is_plain_key(key)       ? PyObject_Str(key)
                                             : PyUnicode_FromString("?");
  if (name == NULL) return -1;
  Py_ssize_t count = PyDict_GET_SIZE(d->names);
  if (count >= MAX_NAMES && PyDict_GetItemWithError(d->names, name) == NULL)
    Py_SETREF(name, PyUnicode_FromString("?")); /* names that never repeat are not kept, so that memory is bounded */
  PyObject *fresh = name == NULL ? NULL : PyLong_FromSsize_t(count), *kept = NULL;
  if (fresh != NULL) kept = PyDict_SetDefault(d->names, name, fresh);
  int64_t found = kept == NULL ? -1 : PyLong_AsLongLong(kept);
  Py_XDECREF(fresh);
  Py_XDECREF(name);
  return found;
}

static int add_entry(Describer *d, PyObject *key, PyObject *value, Row *row, int of_cache) {
  int at = row->length;
  add(row, 0); /* replaced by the name if the value holds a tensor */
  if (add_value(d, value, row, of_cache) < 0) return -1;
  if (row->length <= at + 1 || row->full) {
    row->length = at;
    return 0;
  }
  int64_t name = number_of_name(d, key);
  if (name < 0) {
    row->length = at;
    return must_go_on() ? -1 : 0;
  }
  row->tokens[at] = 1 + name;
  return 0;
}

/* Adds the entries of a dict; of a cache's dict with layers as keys, the entry of the call's layer only. */
static int add_entries(Describer *d, PyObject *dict, Row *row, int of_cache, int of_layers) {
  int start = row->length, failed = 0;
  Py_ssize_t size = PyDict_GET_SIZE(dict), position = 0, looked = 0;
  PyObject *key, *value;
  if (of_layers && size > 1 && row->layer >= 0 && PyDict_CheckExact(dict)) {
    PyObject *layer = PyLong_FromLong(row->layer), *own = PyUnicode_FromString("*");
    value = layer == NULL || own == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(dict, layer));
    if (value != NULL) failed = add_entry(d, own, value, row, 0);
    Py_XDECREF(layer);
    Py_XDECREF(own);
    int known = value != NULL;
    Py_XDECREF(value);
    if (failed || (!known && must_go_on())) return -1;
    if (known) {
      if (row->length > start) add_end(row);
      return 0;
    }
  }
  while (!failed && looked++ < MAX_ENTRIES && !row->full && row->looks > 0 && PyDict_GET_SIZE(dict) == size &&
         PyDict_Next(dict, &position, &key, &value)) {
    Py_INCREF(key);
    Py_INCREF(value);
    failed = add_entry(d, key, value, row, of_cache);
    Py_DECREF(key);
    Py_DECREF(value);
  }
  if (row->length > start) add_end(row);
  return failed;
}

static int add_mapping(Describer *d, PyObject *dict, const void *container, Row *row, int of_cache, int of_layers) {
  if (PyDict_GET_SIZE(dict) == 0 || !enter(row, container)) return 0;
  int before = row->length;
  add(row, MAPPING);
  int failed = add_entries(d, dict, row, of_cache, of_layers);
  row->depth--;
  if (row->length == before + 1) row->length = before;
  return failed;
}

static int kind_of(Describer *d, PyTypeObject *type) {
  int kind = (int)pointer_get(&d->kinds, type);
  if (kind >= 0) return kind;
  PyObject *answer = PyObject_CallOneArg(d->kind_of, (PyObject *)type);
  kind = answer == NULL ? -1 : (int)PyLong_AsLong(answer);
  Py_XDECREF(answer);
  if (kind < 0) return -1;
  if (PyList_GET_SIZE(d->types) < MAX_TYPES && PyList_Append(d->types, (PyObject *)type) == 0)
    pointer_put(&d->kinds, type, kind);
  return PyErr_Occurred() ? -1 : kind;
}

/* Adds a value that the caller owns. Returns -1 only for an exception to be propagated. */
static int add_value(Describer *d, PyObject *value, Row *row, int of_cache) {
  PyTypeObject *type = Py_TYPE(value);
  row->looks--;
  if (type == d->tensor_type || type == d->parameter_type) return add_tensor(d, value, 1, row);
  if (value == Py_None || type == &PyLong_Type || type == &PyUnicode_Type || type == &PyFloat_Type ||
      type == &PyBool_Type)
    return 0;
  if (type == &PyTuple_Type || type == &PyList_Type) return add_sequence(d, value, row, of_cache);
  if (type == &PyDict_Type) return add_mapping(d, value, value, row, 0, of_cache);
  int kind = kind_of(d, type), failed = 0;
  PyObject *inside = NULL;
  switch (kind) {
    case TENSOR_KIND:
      return add_tensor(d, value, 0, row);
    case SEQUENCE_KIND:
      return add_sequence(d, value, row, of_cache);
    case MAPPING_KIND:
      return PyDict_Check(value) ? add_mapping(d, value, value, row, 0, of_cache) : 0;
    case OBJECT_KIND:
    case CACHE_KIND:
      inside = PyObject_GenericGetDict(value, NULL);
      if (inside != NULL && PyDict_Check(inside))
        failed = add_mapping(d, inside, value, row, kind == CACHE_KIND && row->layer >= 0, 0);
      break;
    case UNPACK_KIND:
      if (!enter(row, value)) return 0; /* `value` detects cycles: the unpacked container is a new object each time */
      inside = PyObject_CallOneArg(d->unpack, value);
      if (inside != NULL && PyDict_CheckExact(inside)) failed = add_mapping(d, inside, inside, row, 0, of_cache);
      else if (inside != NULL && PyList_CheckExact(inside)) failed = add_sequence(d, inside, row, of_cache);
      row->depth--;
      break;
  }
  Py_XDECREF(inside);
  return failed || must_go_on() ? -1 : 0;
}

/* ---- Numbers for rows. */

static uint64_t row_hash(const Row *row) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (int i = 0; i < row->length; i++) {
    hash = (hash ^ (uint64_t)row->tokens[i]) * UINT64_C(0x9E3779B97F4A7C15);
    hash ^= hash >> 32;
  }
  return hash;
}

static Signature *find(const Describer *d, const Row *row, uint64_t hash) {
  for (size_t at = hash & d->signature_mask;; at = (at + 1) & d->signature_mask) {
    Signature *here = &d->signatures[at];
    if (here->length == 0) return here;
    if (here->hash == hash && here->length == row->length &&
        memcmp(d->arena.items + here->at, row->tokens, (size_t)row->length * sizeof(int64_t)) == 0)
      return here;
  }
}

static int make_room(Describer *d, int length) {
  if (d->signature_count >= MAX_SIGNATURES || d->arena.used + (size_t)length > MAX_ARENA) {
    /* A run whose shapes keep changing: empty the table; repeated rows get new numbers, and memory stays bounded. */
    memset(d->signatures, 0, (d->signature_mask + 1) * sizeof(Signature));
    d->signature_count = d->arena.used = 0;
  } else if (d->signature_count * 2 > d->signature_mask) {
    size_t size = (d->signature_mask + 1) * 2;
    Signature *grown = calloc(size, sizeof(Signature));
    if (grown == NULL) return -1;
    for (size_t i = 0; i <= d->signature_mask; i++) {
      if (d->signatures[i].length == 0) continue;
      size_t at = d->signatures[i].hash & (size - 1);
      while (grown[at].length != 0) at = (at + 1) & (size - 1);
      grown[at] = d->signatures[i];
    }
    free(d->signatures);
    d->signatures = grown;
    d->signature_mask = size - 1;
  }
  return numbers_reserve(&d->arena, (size_t)length) || numbers_reserve(&d->fresh, (size_t)length + 2) ? -1 : 0;
}

static int64_t number_of_row(Describer *d, const Row *row) {
  if (row->length <= 1) return NO_TENSORS;
  uint64_t hash = row_hash(row);
  Signature *known = find(d, row, hash);
  if (known->length != 0) return known->number;
  if (make_room(d, row->length) < 0) return NO_TENSORS; /* out of memory: the cell stays empty */
  known = find(d, row, hash);
  size_t bytes = (size_t)row->length * sizeof(int64_t);
  known->hash = hash;
  known->length = row->length;
  known->at = d->arena.used;
  known->number = (int32_t)d->next_number++;
  d->signature_count++;
  memcpy(d->arena.items + d->arena.used, row->tokens, bytes);
  d->arena.used += (size_t)row->length;
  int64_t *fresh = d->fresh.items + d->fresh.used;
  fresh[0] = known->number;
  fresh[1] = row->length;
  memcpy(fresh + 2, row->tokens, bytes);
  d->fresh.used += (size_t)row->length + 2;
  return known->number;
}

static void begin_row(Row *row, int64_t what, int layer) {
  row->in_use = 1;
  row->length = row->full = row->depth = 0;
  row->looks = MAX_LOOKS;
  row->device = -1;
  row->layer = layer;
  add(row, what);
}

static int64_t inputs_into(Describer *d, Row *row, PyObject *const *args, Py_ssize_t count, PyObject *names,
                           PyObject *keywords) {
  if (add_items(d, NULL, args, count, row, -1) < 0) return -1;
  if (row->length == 1) { /* no tensor among the positional arguments */
    add(row, 0);
    add_end(row);
  }
  Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
  int start = row->length;
  for (Py_ssize_t i = 0; i < named && !row->full; i++)
    if (add_entry(d, PyTuple_GET_ITEM(names, i), args[count + i], row, 0) < 0) return -1;
  if (row->length > start) add_end(row);
  if (keywords != NULL && add_entries(d, keywords, row, 0, 0) < 0) return -1;
  if (row->length == 3 && row->tokens[1] == 0) return NO_TENSORS;
  return number_of_row(d, row);
}

int64_t describe_inputs(Describer *d, Row *row, PyObject *const *args, Py_ssize_t count, PyObject *names,
                        PyObject *keywords, int layer) {
  if (row->in_use) return NO_TENSORS;
  begin_row(row, INPUTS, layer);
  int64_t number = inputs_into(d, row, args, count, names, keywords);
  row->in_use = 0;
  return number;
}

int64_t describe_output(Describer *d, Row *row, PyObject *output, int layer) {
  if (row->in_use) return NO_TENSORS;
  begin_row(row, OUTPUT, layer);
  int64_t number = add_value(d, output, row, 0) < 0 ? -1 : number_of_row(d, row);
  row->in_use = 0;
  return number;
}

PyObject *describer_take(Describer *d) {
  PyObject *taken = PyBytes_FromStringAndSize((char *)d->fresh.items, (Py_ssize_t)(d->fresh.used * sizeof(int64_t)));
  if (taken != NULL) d->fresh.used = 0;
  return taken;
}

/* ---- Construction and destruction. */

/* Finds torch's DLPack interface, if this torch has one of a known version. */
static void find_dlpack(Describer *d) {
  PyObject *capsule = PyObject_GetAttrString((PyObject *)d->tensor_type, "__dlpack_c_exchange_api__");
  const DLPackExchangeAPI *api = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  if (api != NULL && api->major == 1) d->dltensor = api->dltensor_from_py_object;
  Py_XDECREF(capsule); /* the interface lives as long as torch does */
  PyErr_Clear();
}

int describer_init(Describer *d) {
  d->signature_mask = 255;
  d->signatures = calloc(d->signature_mask + 1, sizeof(Signature));
  d->types = PyList_New(0);
  d->next_number = NO_TENSORS + 1;
  if (d->signatures == NULL || d->types == NULL) {
    PyErr_NoMemory();
    return -1;
  }
  find_dlpack(d);
  return 0;
}

int describer_traverse(Describer *d, visitproc visit, void *arg) {
  Py_VISIT(d->kind_of);
  Py_VISIT(d->unpack);
  Py_VISIT(d->tensor_row);
  Py_VISIT(d->tensor_kind);
  Py_VISIT(d->names);
  Py_VISIT(d->types);
  return 0; /* recent names are strings and take part in no cycle */
}

void describer_clear(Describer *d) {
  pointer_clear(&d->kinds);
  for (int i = 0; i < RECENT_NAMES; i++) Py_CLEAR(d->recent[i].name);
  Py_CLEAR(d->kind_of);
  Py_CLEAR(d->unpack);
  Py_CLEAR(d->tensor_row);
  Py_CLEAR(d->tensor_kind);
  Py_CLEAR(d->names);
  Py_CLEAR(d->types);
}

void describer_free(Describer *d) {
  describer_clear(d);
  Py_CLEAR(d->tensor_type);
  Py_CLEAR(d->parameter_type);
  free(d->signatures);
  free(d->arena.items);
  free(d->fresh.items);
}
