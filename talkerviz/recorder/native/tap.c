/* The tap: a replacement of nn.Module.__call__ that logs the calls of watched modules. docs/explanation/recorder.md describes it.

   It is written against the interpreter's C API, because the replacement must be a vectorcall that binds as a method: a
   call then costs one more C function and no Python object. Cython, nanobind and PyO3 all create a tuple and a dict of
   the arguments. Three rules keep the files of this folder safe: every object in use while Python code may run is
   owned (Py_INCREF), exceptions of the recorder's own are cleared (`must_go_on`), and nothing is kept alive after
   `close`. test_tap_fuzz.py checks them under AddressSanitizer.

   Without a C compiler, python_events.py does the same through forward hooks. */

#include "describe.h"
#include "device_stamps.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

#ifdef Py_GIL_DISABLED
#error "the tables are guarded by the interpreter's lock"
#endif

/* trace/event_log.py has the same numbers. */
enum { MARK = 1 << 30, PAUSE, COLLECTIVE, GARBAGE, RUN, NAMED, REQUEST };
/* python_events.py has the same numbers, and describes them. */
enum { EXCLUDED, JOINS, JOINS_OTHERS }; /* answers of `joins` */
enum { NO_LANDMARK, FRAME_LANDMARK, PASS_LANDMARK, RULE_LANDMARK };
enum { LANDMARK_ONLY = -1, NOT_RECORDED = -2 };
#define FLUSH_NS 500000000      /* between writes to disk, to bound what a killed process loses */
#define UNUSUAL_NS 50000        /* own time at one end of a call above which the thread was interrupted */
#define COARSE_CLOCK_EVENTS 256 /* events between an untimed recording's looks at the clock */
#define MOST_STRANGERS 64       /* calls of unwatched modules that are reported to Python, at microseconds each */

typedef struct {
  int32_t number, layer, landmark;
} Watched;

/* A `Watched` is packed into one integer of the pointer table, so that a lookup touches one cache line. */
enum { LAYER_BITS = 24, LANDMARK_BITS = 4 };

static inline int64_t pack(Watched watched) {
  return ((int64_t)watched.number - NOT_RECORDED) << (LAYER_BITS + LANDMARK_BITS) |
         (int64_t)(watched.layer + 1) << LANDMARK_BITS | watched.landmark;
}

static inline Watched unpack(int64_t packed) {
  Watched watched;
  watched.number = (int32_t)(packed >> (LAYER_BITS + LANDMARK_BITS)) + NOT_RECORDED;
  watched.layer = (int32_t)(packed >> LANDMARK_BITS & ((1 << LAYER_BITS) - 1)) - 1;
  watched.landmark = (int32_t)(packed & ((1 << LANDMARK_BITS) - 1));
  return watched;
}

typedef struct {
  int32_t what, tensors;
  int64_t time, value;
} Event;

/* A mark: phase, request (-1 for none), and frame and step packed as (frame + 1) << 24 | (step + 1). */
typedef struct {
  int32_t phase, request;
  int64_t place;
} Mark;

typedef struct {
  Event *events;
  Py_ssize_t used, room;
  uint64_t thread;    /* serial number of the thread */
  Py_ssize_t number;  /* of the log */
  int64_t flushed_ns; /* time of the last write to disk */
  int64_t garbage_ns; /* time in garbage collections so far */
  int64_t own_ns, usual_ns, calls, passed_by; /* the last: calls that were not recorded on this thread */
  int64_t taken;      /* number of times its events were taken, after which positions of events are invalid */
  Mark mark;
  PyObject *placed; /* value of the context variable `placed` for the mark; NULL for none */
  int32_t named;    /* phase that its code has named; -1 for none */
  int depth, passes_deep, excluded;
  Row row;
} Log;

typedef struct {
  PyObject_HEAD vectorcallfunc vectorcall;
  PyObject *below, *entered, *left, *failed, *joins, *full, *stranger, *stamp, *edge, *phase, *placed, *moved, *here;
  PyObject *device_stamps; /* of type DeviceStamps; None for none */
  Describer describer;
  PyObject *named_where; /* () -> the phase that the code around a call has named; NULL to read it from the context */
  int timed, names_phases, follows_contexts;
  int finds_roots; /* whether each unwatched module that is called outside any other is shown to `stranger` */
  Py_ssize_t limit;
  PointerTable watched; /* module -> a packed `Watched` */
  PyObject *modules;    /* list of modules kept alive, so that no other gets the address of one */
  Log **logs;
  Py_ssize_t log_count;
  uint64_t name; /* serial number of this tap in the process: unlike its address it is never reused */
  Mark mark, start; /* the latest mark of any thread; the mark that a run begins with */
  int32_t frame_phase, first_named;
  int64_t frame, run;
  int passes; /* landmarks being called, on all threads */
  int64_t strange_calls;
  int strangers_asked;
} Tap;

/* This thread's log in the tap that it last called. A new thread starts with zeroes, even if it reuses a system id. */
static THREAD_LOCAL struct {
  uint64_t serial, tap;
  Log *log;
} this_thread;
static uint64_t taps_made, threads_met;
static PyTypeObject *stamps_type;

/* ---- Logs. */

static inline int64_t now_ns(const Tap *tap) { return tap->timed ? clock_ns() : -1; }

static int push(Log *log, int32_t what, int32_t tensors, int64_t time, int64_t value) {
  if (log->used == log->room) {
    Py_ssize_t room = log->room ? log->room * 2 : 1024;
    Event *events = realloc(log->events, (size_t)room * sizeof(Event));
    if (events == NULL) {
      PyErr_NoMemory();
      return -1;
    }
    log->events = events;
    log->room = room;
  }
  Event *event = &log->events[log->used++];
  event->what = what;
  event->tensors = tensors;
  event->time = time;
  event->value = value;
  return 0;
}

/* Sets the mark of this thread's calls from here on. */
static int set_mark(Tap *tap, Log *log, Mark mark) {
  if (mark.request != log->mark.request && push(log, REQUEST, mark.request, now_ns(tap), 0) < 0) return -1;
  log->mark = mark;
  return push(log, MARK, mark.phase, now_ns(tap), mark.place);
}

/* Returns the log of the current thread, excluded or not; NULL with an exception set. */
static Log *log_of_thread(Tap *tap) {
  if (this_thread.tap == tap->name) return this_thread.log;
  if (this_thread.serial == 0) this_thread.serial = ++threads_met;
  Log *log = NULL;
  for (Py_ssize_t i = 0; i < tap->log_count; i++)
    if (tap->logs[i]->thread == this_thread.serial) log = tap->logs[i];
  if (log == NULL) {
    long joins = JOINS_OTHERS;
    if (tap->log_count > 0) { /* the first thread is the one that started the recording */
      PyObject *answer = PyObject_CallNoArgs(tap->joins);
      joins = answer == NULL ? JOINS : PyLong_AsLong(answer);
      Py_XDECREF(answer);
      if (must_go_on()) return NULL;
    }
    Log **logs = realloc(tap->logs, (size_t)(tap->log_count + 1) * sizeof(Log *));
    if (logs != NULL) tap->logs = logs;
    if (logs == NULL || (log = calloc(1, sizeof(Log))) == NULL) {
      PyErr_NoMemory();
      return NULL;
    }
    log->thread = this_thread.serial;
    log->flushed_ns = clock_ns();
    log->named = log->mark.request = -1;
    log->excluded = joins == EXCLUDED;
    log->number = tap->log_count;
    tap->logs[tap->log_count++] = log;
    /* A thread that runs beside a pass is a part of it, as the threads of DataParallel are. */
    Mark mark = joins == JOINS_OTHERS || tap->passes > 0 ? tap->mark : tap->start;
    if (push(log, RUN, (int32_t)tap->run, now_ns(tap), 0) < 0 || set_mark(tap, log, mark) < 0) return NULL;
  }
  this_thread.tap = tap->name;
  this_thread.log = log;
  return log;
}

/* Tells the device clock that the recorder holds up the calls that are open, from here or until here. */
static int pause_device(Tap *tap, Log *log, int begins) {
  return tap->device_stamps == Py_None ? 0 : device_pause((DeviceStamps *)tap->device_stamps, log->number, begins);
}

/* Writes the thread's events to disk if their number or the time since the last write is due. */
static int flush_if_due(Tap *tap, Log *log, int64_t time) {
  if (log->used < tap->limit) {
    if (!tap->timed) {
      if (log->used % COARSE_CLOCK_EVENTS) return 0;
      time = clock_ns();
    }
    if (time - log->flushed_ns < FLUSH_NS) return 0;
  }
  int64_t began = log->flushed_ns = clock_ns(), garbage = log->garbage_ns;
  if (pause_device(tap, log, 1) < 0) return -1;
  PyObject *answer = PyObject_CallNoArgs(tap->full);
  int accounted = answer == Py_True;
  Py_XDECREF(answer);
  if (must_go_on() || pause_device(tap, log, 0) < 0) return -1;
  int64_t took = clock_ns() - began - (log->garbage_ns - garbage);
  if (accounted || !tap->timed) return 0;
  log->own_ns += took;
  log->usual_ns += took;
  return push(log, PAUSE, 0, 0, took);
}

/* Adds the recorder's own time at one end of a call. The usual cost is capped, so that interruptions count little. */
static inline void count_own(Log *log, int64_t own) {
  log->own_ns += own;
  log->usual_ns += own < UNUSUAL_NS ? own : UNUSUAL_NS;
}

/* ---- Begin and end of a call. These functions return -1 only with an exception to be propagated. */

static int stamp(Tap *tap, PyObject *beginning) {
  if (tap->stamp == Py_None) return 0;
  PyObject *answer = PyObject_CallOneArg(tap->stamp, beginning);
  Py_XDECREF(answer);
  return must_go_on() ? -1 : 0;
}

/* Stamps a call on its device, next to its work. */
static int stamp_device(Tap *tap, Log *log, int entry, int32_t module) {
  if (tap->device_stamps == Py_None) return 0;
  StampedCall call = {log->depth, module, log->row.device, (log->mark.place >> 24) - 1, log->own_ns};
  return device_stamp((DeviceStamps *)tap->device_stamps, log->number, entry, &call);
}

/* Tells of a call's begin by the module's number, or of its end by -1 minus the number. */
static int tell_edge(Tap *tap, int32_t number) {
  if (tap->edge == Py_None) return 0;
  PyObject *value = PyLong_FromLong(number);
  if (value != NULL) Py_XDECREF(PyObject_CallOneArg(tap->edge, value));
  Py_XDECREF(value);
  return must_go_on() ? -1 : 0;
}

/* Logs the phase that the code around a call has named, read from the context of its task or thread, if it changed. */
static int push_named(Tap *tap, Log *log) {
  PyObject *value = NULL;
  /* `first_named` holds for other threads only: the first thread's own context is complete. */
  int32_t named = log == tap->logs[0] ? -1 : tap->first_named;
  if (tap->named_where != NULL) value = PyObject_CallNoArgs(tap->named_where);
  else if (PyContextVar_Get(tap->phase, NULL, &value) < 0) value = NULL;
  if (must_go_on()) return -1;
  if (value != NULL && PyLong_Check(value) && PyLong_AsLong(value) >= 0) named = (int32_t)PyLong_AsLong(value);
  Py_XDECREF(value);
  if (named == log->named) return 0;
  log->named = named;
  return push(log, NAMED, named, now_ns(tap), 0);
}

/* Restores the mark of the current context: asyncio tasks take turns on a thread. */
static int follow_context(Tap *tap, Log *log) {
  PyObject *placed = NULL;
  if (PyContextVar_Get(tap->placed, NULL, &placed) < 0) return must_go_on() ? -1 : 0;
  if (placed == log->placed) {
    Py_XDECREF(placed);
    return 0;
  }
  PyObject *before = log->placed;
  log->placed = placed;
  Py_XDECREF(before);
  Py_XDECREF(PyObject_CallOneArg(tap->moved, placed == NULL ? Py_None : placed));
  return must_go_on() ? -1 : 0;
}

/* Returns whether the current context is recorded, in a recording of one thread or task only. */
static int is_here(Tap *tap) {
  if (tap->here == Py_None) return 1;
  PyObject *value = NULL;
  if (PyContextVar_Get(tap->here, NULL, &value) < 0) PyErr_Clear();
  Py_XDECREF(value);
  return value == Py_True;
}

/* Begins a landmark's call: counts a frame, or calls `entered`. */
static int pass_landmark(Tap *tap, Log *log, const Watched *watched, PyObject *module, PyObject *const *args,
                         Py_ssize_t count, PyObject *names, PyObject *keywords) {
  tap->passes++;
  if (watched->landmark != RULE_LANDMARK && log->passes_deep++ > 0) return 0;
  if (watched->landmark == FRAME_LANDMARK) {
    tap->mark = (Mark){tap->frame_phase, -1, (++tap->frame + 1) << 24};
    return set_mark(tap, log, tap->mark);
  }
  PyObject *positional = PyTuple_New(count), *named = keywords == NULL ? PyDict_New() : Py_NewRef(keywords);
  int bad = positional == NULL || named == NULL;
  for (Py_ssize_t i = 0; !bad && i < count; i++) PyTuple_SET_ITEM(positional, i, Py_NewRef(args[i]));
  for (Py_ssize_t i = 0; !bad && names != NULL && i < PyTuple_GET_SIZE(names); i++)
    bad = PyDict_SetItem(named, PyTuple_GET_ITEM(names, i), args[count + i]) < 0;
  if (!bad) Py_XDECREF(PyObject_CallFunctionObjArgs(tap->entered, module, positional, named, NULL));
  Py_XDECREF(positional);
  Py_XDECREF(named);
  return must_go_on() ? -1 : 0;
}

static int begin_call(Tap *tap, Log *log, const Watched *watched, PyObject *module, PyObject *const *args,
                      Py_ssize_t count, PyObject *names, PyObject *keywords) {
  int64_t entered = now_ns(tap), garbage = log->garbage_ns;
  if (watched->landmark && pass_landmark(tap, log, watched, module, args, count, names, keywords) < 0) return -1;
  if (watched->number >= 0) {
    if (tap->follows_contexts && follow_context(tap, log) < 0) return -1;
    if (tap->names_phases && push_named(tap, log) < 0) return -1;
    int64_t inputs = describe_inputs(&tap->describer, &log->row, args, count, names, keywords, watched->layer);
    if (inputs < 0 || tell_edge(tap, watched->number) < 0) return -1;
    if (stamp(tap, Py_True) < 0 || stamp_device(tap, log, 1, watched->number) < 0) return -1;
    /* The device's and the host's begin are taken here, last: time from here on is the call's own. */
    int64_t time = now_ns(tap), own = time - entered - (log->garbage_ns - garbage);
    if (push(log, watched->number, (int32_t)inputs, time, own) < 0) return -1;
    count_own(log, own);
    log->calls++;
    if (flush_if_due(tap, log, time) < 0) {
      /* Ctrl-C: the call is not made, but its begin is logged, so its end must be too. */
      PyObject *type, *value, *traceback;
      PyErr_Fetch(&type, &value, &traceback);
      if (stamp_device(tap, log, 0, watched->number) < 0) PyErr_Clear();
      push(log, -1 - watched->number, NO_TENSORS, now_ns(tap), 0);
      PyErr_Restore(type, value, traceback);
      return -1;
    }
  }
  log->depth++;
  return 0;
}

/* Counts the end of a landmark's call. */
static inline void close_landmark(Tap *tap, Log *log, const Watched *watched) {
  tap->passes -= watched->landmark != NO_LANDMARK;
  log->passes_deep -= watched->landmark == FRAME_LANDMARK || watched->landmark == PASS_LANDMARK;
}

static int leave_landmark(Tap *tap, Log *log, const Watched *watched, PyObject *module) {
  close_landmark(tap, log, watched);
  if (watched->landmark != RULE_LANDMARK) return 0;
  Py_XDECREF(PyObject_CallOneArg(tap->left, module));
  return must_go_on() ? -1 : 0;
}

static int end_call(Tap *tap, Log *log, const Watched *watched, PyObject *module, PyObject *output, int64_t time) {
  int failed = 0;
  int64_t garbage = log->garbage_ns;
  log->depth--;
  if (watched->number >= 0) {
    /* The end is logged first: the recorder's work from here on is no part of the call. */
    if (push(log, -1 - watched->number, NO_TENSORS, time, 0) < 0) return -1;
    Py_ssize_t place = log->used - 1;
    int64_t taken = log->taken;
    failed = stamp_device(tap, log, 0, watched->number) < 0 || stamp(tap, Py_False) < 0;
    failed = failed || tell_edge(tap, -1 - watched->number) < 0;
    int64_t outputs = failed ? -1 : describe_output(&tap->describer, &log->row, output, watched->layer);
    failed = outputs < 0; /* Ctrl-C, most likely; the call's end is logged all the same */
    if (!failed) failed = leave_landmark(tap, log, watched, module);
    int64_t own = now_ns(tap) - time - (log->garbage_ns - garbage);
    count_own(log, own);
    if (log->taken == taken) {
      log->events[place].value = own;
      if (outputs > 0) log->events[place].tensors = (int32_t)outputs;
    }
  } else {
    failed = leave_landmark(tap, log, watched, module);
  }
  return failed || flush_if_due(tap, log, time) < 0 ? -1 : 0;
}

/* Ends a call that raised. Its exception stays set, unless Ctrl-C replaces it. */
static void fail_call(Tap *tap, Log *log, const Watched *watched, PyObject *module, int64_t time) {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  PyObject *answer = PyObject_CallOneArg(tap->failed, type == NULL ? Py_None : type);
  long error = answer == NULL ? NO_TENSORS : PyLong_AsLong(answer);
  Py_XDECREF(answer);
  int stopped = must_go_on();
  log->depth--;
  if (watched->number >= 0) {
    PyObject *held[3] = {NULL, NULL, NULL};
    if (stopped) PyErr_Fetch(&held[0], &held[1], &held[2]);
    int stopped_again = stamp_device(tap, log, 0, watched->number) < 0 || stamp(tap, Py_False) < 0;
    if (push(log, -1 - watched->number, (int32_t)error, time, 0) < 0 && !stopped_again) PyErr_Clear();
    stopped_again |= !stopped_again && tell_edge(tap, -1 - watched->number) < 0;
    if (stopped) PyErr_Restore(held[0], held[1], held[2]);
    stopped |= stopped_again;
  }
  if (!stopped) stopped = leave_landmark(tap, log, watched, module) < 0 || flush_if_due(tap, log, time) < 0;
  else close_landmark(tap, log, watched);
  if (stopped) {
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
  } else {
    PyErr_Restore(type, value, traceback);
  }
}

/* Handles an unwatched module: one that is not registered in the model, a compiled wrapper, or another model's. */
static int meet_stranger(Tap *tap, PyObject *module) {
  int compiled = strcmp(Py_TYPE(module)->tp_name, "OptimizedModule") == 0;
  int inside = this_thread.tap == tap->name && this_thread.log->depth > 0, failed = 0;
  int root = tap->finds_roots && !inside;
  if (tap->strangers_asked < MOST_STRANGERS || compiled || root) {
    tap->strangers_asked += !root;
    Py_XDECREF(PyObject_CallFunctionObjArgs(tap->stranger, module, inside ? Py_True : Py_False, NULL));
    failed = must_go_on();
  }
  if (inside && (!compiled || pointer_get(&tap->watched, module) < 0)) tap->strange_calls++;
  return failed ? -1 : 0;
}

/* ---- The replacement of nn.Module.__call__. */

static PyObject *tap_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *names) {
  Tap *tap = (Tap *)self;
  Py_ssize_t count = PyVectorcall_NARGS(nargsf);
  int64_t packed = count ? pointer_get(&tap->watched, args[0]) : -1;
  if (packed < 0) {
    if (count && (tap->watched.slots != NULL || tap->finds_roots) && meet_stranger(tap, args[0]) < 0) return NULL;
    packed = count ? pointer_get(&tap->watched, args[0]) : -1; /* `stranger` may have watched it */
    if (packed < 0) return PyObject_Vectorcall(tap->below, args, nargsf, names);
  }
  Watched watched = unpack(packed);
  if (watched.number == NOT_RECORDED) return PyObject_Vectorcall(tap->below, args, nargsf, names);
  Log *log = log_of_thread(tap);
  if (log == NULL) return NULL;
  if (log->excluded || !is_here(tap)) {
    log->passed_by++;
    return PyObject_Vectorcall(tap->below, args, nargsf, names);
  }
  Py_INCREF(self); /* the recording may end inside the call */
  PyObject *output = NULL;
  if (begin_call(tap, log, &watched, args[0], args + 1, count - 1, names, NULL) == 0) {
    output = PyObject_Vectorcall(tap->below, args, nargsf, names);
    int64_t time = now_ns(tap);
    if (output == NULL) fail_call(tap, log, &watched, args[0], time);
    else if (end_call(tap, log, &watched, args[0], output, time) < 0) Py_CLEAR(output);
  } else {
    close_landmark(tap, log, &watched); /* Ctrl-C */
  }
  Py_DECREF(self);
  return output;
}

/* ---- The same for forward hooks, which call begin and end separately. */

static Log *watched_log(Tap *tap, PyObject *module, Watched *watched, int begins) {
  int64_t packed = pointer_get(&tap->watched, module);
  if (packed < 0) return NULL;
  *watched = unpack(packed);
  if (watched->number == NOT_RECORDED) return NULL;
  Log *log = log_of_thread(tap);
  if (log == NULL || (!log->excluded && is_here(tap))) return log;
  log->passed_by += begins;
  return NULL;
}

static PyObject *none_or_error(void) {
  if (PyErr_Occurred()) return NULL;
  Py_RETURN_NONE;
}

static PyObject *tap_begin(Tap *tap, PyObject *args) {
  PyObject *module, *positional, *keywords;
  Watched watched;
  if (!PyArg_ParseTuple(args, "OO!O!", &module, &PyTuple_Type, &positional, &PyDict_Type, &keywords)) return NULL;
  Log *log = watched_log(tap, module, &watched, 1);
  if (log != NULL)
    begin_call(tap, log, &watched, module, &PyTuple_GET_ITEM(positional, 0), PyTuple_GET_SIZE(positional), NULL,
               keywords);
  return none_or_error();
}

static PyObject *tap_end(Tap *tap, PyObject *args) {
  PyObject *module, *output;
  Watched watched;
  int64_t time = now_ns(tap);
  if (!PyArg_ParseTuple(args, "OO", &module, &output)) return NULL;
  Log *log = watched_log(tap, module, &watched, 0);
  if (log != NULL) end_call(tap, log, &watched, module, output, time);
  return none_or_error();
}

static PyObject *tap_fail(Tap *tap, PyObject *args) {
  PyObject *module, *error;
  Watched watched;
  int64_t time = now_ns(tap);
  if (!PyArg_ParseTuple(args, "OO", &module, &error)) return NULL;
  Log *log = watched_log(tap, module, &watched, 0);
  if (log == NULL) return none_or_error();
  PyErr_SetNone(error);
  fail_call(tap, log, &watched, module, time);
  if (PyErr_ExceptionMatches(error)) PyErr_Clear();
  return none_or_error();
}

/* ---- Methods for the recording. */

static PyObject *tap_watch(Tap *tap, PyObject *args) {
  PyObject *module;
  Watched watched;
  int keep;
  if (!PyArg_ParseTuple(args, "Oiiip", &module, &watched.number, &watched.layer, &watched.landmark, &keep)) return NULL;
  if (watched.layer >= (1 << LAYER_BITS) - 1) watched.layer = -1;
  if (keep && PyList_Append(tap->modules, module) < 0) return NULL;
  if (pointer_put(&tap->watched, module, pack(watched)) < 0) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

static PyObject *tap_unwatch(Tap *tap, PyObject *identity) {
  void *module = PyLong_AsVoidPtr(identity);
  if (module == NULL && PyErr_Occurred()) return NULL;
  /* The slot stays, for another module that gets the same address and is watched. */
  if (pointer_get(&tap->watched, module) >= 0) pointer_put(&tap->watched, module, -1);
  Py_RETURN_NONE;
}

static PyObject *tap_put(Tap *tap, PyObject *args) {
  int what, tensors;
  long long time, value;
  if (!PyArg_ParseTuple(args, "iiLL", &what, &tensors, &time, &value)) return NULL;
  Log *log = log_of_thread(tap);
  if (log == NULL || push(log, what, tensors, time, value) < 0) return NULL;
  Py_RETURN_NONE;
}

/* Logs a garbage collection. One that runs inside the recorder does not count as the recorder's own time. */
static PyObject *tap_garbage(Tap *tap, PyObject *args) {
  int generation;
  long long took;
  if (!PyArg_ParseTuple(args, "iL", &generation, &took)) return NULL;
  if (this_thread.tap == tap->name && !this_thread.log->excluded) {
    this_thread.log->garbage_ns += took;
    if (push(this_thread.log, GARBAGE, generation, now_ns(tap), took) < 0) return NULL;
  }
  Py_RETURN_NONE;
}

static PyObject *tap_mark(Tap *tap, PyObject *args) {
  int phase, request;
  long long frame, step;
  if (!PyArg_ParseTuple(args, "iLLi", &phase, &frame, &step, &request)) return NULL;
  Log *log = log_of_thread(tap);
  if (log == NULL) return NULL;
  tap->mark = (Mark){phase, request, (frame + 1) << 24 | (step + 1)};
  PyObject *before = log->placed;
  if (PyContextVar_Get(tap->placed, NULL, &log->placed) < 0) return NULL;
  Py_XDECREF(before);
  return set_mark(tap, log, tap->mark) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *tap_latest(Tap *tap, PyObject *Py_UNUSED(ignored)) {
  int met = this_thread.tap == tap->name;
  Mark mark = met ? this_thread.log->mark : tap->mark;
  return Py_BuildValue("iLLiLi", mark.phase, (long long)(mark.place >> 24) - 1, (long long)(mark.place & 0xffffff) - 1,
                       mark.request, (long long)tap->run, met ? this_thread.log->named : tap->first_named);
}

static PyObject *tap_frames(Tap *tap, PyObject *Py_UNUSED(ignored)) { return PyLong_FromLongLong(tap->frame + 1); }

static PyObject *tap_begin_run(Tap *tap, PyObject *args) {
  long long run;
  int phase;
  if (!PyArg_ParseTuple(args, "Li", &run, &phase)) return NULL;
  Log *log = log_of_thread(tap);
  if (log == NULL) return NULL;
  tap->run = run;
  tap->frame = -1;
  tap->mark = tap->start = (Mark){phase, -1, 0};
  for (Py_ssize_t i = 0; i < tap->log_count; i++)
    if (push(tap->logs[i], RUN, (int32_t)run, now_ns(tap), 0) < 0 || set_mark(tap, tap->logs[i], tap->mark) < 0)
      return NULL;
  Py_RETURN_NONE;
}

/* From here on logs the phase that the code around each call has named, found by `where`, or in the context if it is
   None. Calls without one have `first`, the phase named around the recording; -1 for none. */
static PyObject *tap_name_phases(Tap *tap, PyObject *args) {
  PyObject *where, *before = tap->named_where;
  int first;
  if (!PyArg_ParseTuple(args, "iO", &first, &where)) return NULL;
  tap->names_phases = 1;
  tap->first_named = first;
  tap->named_where = where == Py_None ? NULL : Py_NewRef(where);
  Py_XDECREF(before);
  Py_RETURN_NONE;
}

static PyObject *tap_follow_contexts(Tap *tap, PyObject *Py_UNUSED(ignored)) {
  tap->follows_contexts = 1;
  Py_RETURN_NONE;
}

/* Sets whether this thread's calls are left out. */
static PyObject *tap_exclude(Tap *tap, PyObject *excluded) {
  Log *log = log_of_thread(tap);
  if (log == NULL) return NULL;
  log->excluded = PyObject_IsTrue(excluded);
  Py_RETURN_NONE;
}

static PyObject *tap_describe(Tap *tap, PyObject *args) {
  PyObject *positional, *keywords;
  if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &positional, &PyDict_Type, &keywords)) return NULL;
  Log *log = log_of_thread(tap);
  if (log == NULL) return NULL;
  int64_t number = describe_inputs(&tap->describer, &log->row, &PyTuple_GET_ITEM(positional, 0),
                                   PyTuple_GET_SIZE(positional), NULL, keywords, -1);
  return number < 0 ? NULL : PyLong_FromLongLong(number);
}

static PyObject *tap_describe_output(Tap *tap, PyObject *output) {
  Log *log = log_of_thread(tap);
  if (log == NULL) return NULL;
  int64_t number = describe_output(&tap->describer, &log->row, output, -1);
  return number < 0 ? NULL : PyLong_FromLongLong(number);
}

static PyObject *tap_take(Tap *tap, PyObject *thread) {
  Py_ssize_t number = PyLong_AsSsize_t(thread);
  if (number < 0 || number >= tap->log_count) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_IndexError, "no such thread");
    return NULL;
  }
  Log *log = tap->logs[number];
  PyObject *taken = PyBytes_FromStringAndSize((char *)log->events, log->used * (Py_ssize_t)sizeof(Event));
  if (taken != NULL) {
    log->used = 0;
    log->taken++;
  }
  return taken;
}

static PyObject *tap_take_rows(Tap *tap, PyObject *Py_UNUSED(ignored)) { return describer_take(&tap->describer); }

static PyObject *tap_thread(Tap *tap, PyObject *Py_UNUSED(ignored)) {
  Log *log = log_of_thread(tap);
  for (Py_ssize_t number = 0; log != NULL && number < tap->log_count; number++)
    if (tap->logs[number] == log) return PyLong_FromSsize_t(number);
  return NULL;
}

static PyObject *tap_threads(Tap *tap, PyObject *Py_UNUSED(ignored)) { return PyLong_FromSsize_t(tap->log_count); }

static PyObject *tap_totals(Tap *tap, PyObject *Py_UNUSED(ignored)) {
  int64_t calls = 0, own = 0, passed_by = 0;
  for (Py_ssize_t i = 0; i < tap->log_count; i++) {
    calls += tap->logs[i]->calls;
    own += tap->logs[i]->usual_ns;
    passed_by += tap->logs[i]->passed_by;
  }
  return Py_BuildValue("LLLL", (long long)calls, (long long)own, (long long)passed_by, (long long)tap->strange_calls);
}

static PyObject *tap_own_ns(Tap *tap, PyObject *Py_UNUSED(ignored)) {
  Log *log = log_of_thread(tap);
  return log == NULL ? NULL : PyLong_FromLongLong(log->own_ns);
}

/* Stops watching, and keeps no module alive. Calls may still be inside, so logs and callables stay. */
static PyObject *tap_close(Tap *tap, PyObject *Py_UNUSED(ignored)) {
  pointer_clear(&tap->watched);
  tap->finds_roots = 0;
  if (tap->modules != NULL) PyList_SetSlice(tap->modules, 0, PyList_GET_SIZE(tap->modules), NULL);
  Py_RETURN_NONE;
}

/* ---- Construction, destruction and type. */

static PyObject **callables(Tap *tap, int at) {
  PyObject **all[] = {&tap->below, &tap->entered,  &tap->left,  &tap->failed, &tap->joins,
                      &tap->full,  &tap->stranger, &tap->stamp, &tap->edge,   &tap->phase,
                      &tap->placed, &tap->moved,   &tap->here,  &tap->device_stamps};
  return at < (int)(sizeof(all) / sizeof(*all)) ? all[at] : NULL;
}

static int tap_traverse(Tap *tap, visitproc visit, void *arg) {
  for (int i = 0; callables(tap, i) != NULL; i++) Py_VISIT(*callables(tap, i));
  Py_VISIT(tap->modules);
  Py_VISIT(tap->named_where);
  Py_VISIT(Py_TYPE(tap));
  return describer_traverse(&tap->describer, visit, arg);
}

static int tap_clear(Tap *tap) {
  for (int i = 0; callables(tap, i) != NULL; i++) Py_CLEAR(*callables(tap, i));
  pointer_clear(&tap->watched);
  Py_CLEAR(tap->modules);
  Py_CLEAR(tap->named_where);
  describer_clear(&tap->describer);
  return 0;
}

static void tap_dealloc(Tap *tap) {
  PyObject_GC_UnTrack(tap);
  tap_clear(tap);
  describer_free(&tap->describer);
  for (Py_ssize_t i = 0; i < tap->log_count; i++) {
    Py_XDECREF(tap->logs[i]->placed);
    free(tap->logs[i]->events);
    free(tap->logs[i]);
  }
  free(tap->logs);
  PyTypeObject *type = Py_TYPE(tap);
  type->tp_free((PyObject *)tap);
  Py_DECREF(type);
}

static PyObject *tap_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  static char *names[] = {"tensor", "parameter", "kind_of", "unpack",   "tensor_row", "tensor_kind", "names",
                          "below",  "entered",   "left",    "failed",   "joins",      "full",        "stranger",
                          "stamp",  "edge",      "phase",   "placed",   "moved",      "here",        "device_stamps",
                          "start",  "frame",     "timed",   "roots",    "limit",      NULL};
  PyObject *tensor, *parameter, *described[5], *given[14];
  int start, frame, timed, finds_roots;
  Py_ssize_t limit;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O!OOOOO!OOOOOOOOOOOOOOiippn", names, &PyType_Type, &tensor,
                                   &PyType_Type, &parameter, &described[0], &described[1], &described[2],
                                   &described[3], &PyDict_Type, &described[4], &given[0], &given[1], &given[2],
                                   &given[3], &given[4], &given[5], &given[6], &given[7], &given[8], &given[9],
                                   &given[10], &given[11], &given[12], &given[13], &start, &frame, &timed,
                                   &finds_roots, &limit))
    return NULL;
  if (given[13] != Py_None && Py_TYPE(given[13]) != stamps_type) {
    PyErr_SetString(PyExc_TypeError, "device_stamps must be a DeviceStamps of this module");
    return NULL;
  }
  Tap *tap = (Tap *)type->tp_alloc(type, 0);
  if (tap == NULL) return NULL;
  tap->name = ++taps_made;
  tap->vectorcall = tap_call;
  for (int i = 0; callables(tap, i) != NULL; i++) *callables(tap, i) = Py_NewRef(given[i]);
  Describer *describer = &tap->describer;
  describer->tensor_type = (PyTypeObject *)Py_NewRef(tensor);
  describer->parameter_type = (PyTypeObject *)Py_NewRef(parameter);
  describer->kind_of = Py_NewRef(described[0]);
  describer->unpack = Py_NewRef(described[1]);
  describer->tensor_row = Py_NewRef(described[2]);
  describer->tensor_kind = Py_NewRef(described[3]);
  describer->names = Py_NewRef(described[4]);
  tap->mark = tap->start = (Mark){start, -1, 0};
  tap->frame_phase = frame;
  tap->frame = -1;
  tap->first_named = -1;
  tap->timed = timed;
  tap->finds_roots = finds_roots;
  tap->limit = limit;
  tap->modules = PyList_New(0);
  if (tap->modules == NULL || describer_init(describer) < 0) {
    Py_DECREF(tap);
    return NULL;
  }
  return (PyObject *)tap;
}

/* Binds like a function, so that `module(...)` and `super().__call__(...)` pass the module. */
static PyObject *tap_get(PyObject *self, PyObject *module, PyObject *Py_UNUSED(type)) {
  return module == NULL || module == Py_None ? Py_NewRef(self) : PyMethod_New(self, module);
}

static PyObject *tap_self(PyObject *self, void *Py_UNUSED(closure)) { return Py_NewRef(self); }

/* `__name__` and `__code__` of the original: a module compiled during a recording keeps its bound `__call__`. Dynamo
   recognizes torch's own by name only, and would compile one more frame around any other. */
static PyObject *tap_of_below(PyObject *self, void *name) { return PyObject_GetAttrString(((Tap *)self)->below, name); }

static PyGetSetDef tap_getters[] = {{"call", tap_self, NULL, "replacement of nn.Module.__call__", NULL},
                                    {"__name__", tap_of_below, NULL, "that of the original __call__", "__name__"},
                                    {"__code__", tap_of_below, NULL, "that of the original __call__", "__code__"},
                                    {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef tap_methods[] = {
    {"watch", (PyCFunction)tap_watch, METH_VARARGS, "watch(module, number, layer, landmark, keep)"},
    {"unwatch", (PyCFunction)tap_unwatch, METH_O, "unwatch(id): stop watching a module that is not kept"},
    {"begin", (PyCFunction)tap_begin, METH_VARARGS, "begin(module, args, kwargs): log that a call begins"},
    {"end", (PyCFunction)tap_end, METH_VARARGS, "end(module, output): log that a call returns"},
    {"fail", (PyCFunction)tap_fail, METH_VARARGS, "fail(module, exception type): log that a call raises"},
    {"put", (PyCFunction)tap_put, METH_VARARGS, "put(what, tensors, time, value): log an event on this thread"},
    {"garbage", (PyCFunction)tap_garbage, METH_VARARGS, "garbage(generation, ns): log a garbage collection"},
    {"mark", (PyCFunction)tap_mark, METH_VARARGS, "mark(phase, frame, step, request): set this thread's mark"},
    {"latest", (PyCFunction)tap_latest, METH_NOARGS, "latest() -> (phase, frame, step, request, run, named phase)"},
    {"frames", (PyCFunction)tap_frames, METH_NOARGS, "frames() -> number of frames counted in this run"},
    {"begin_run", (PyCFunction)tap_begin_run, METH_VARARGS, "begin_run(run, phase): count frames from 0 again"},
    {"name_phases", (PyCFunction)tap_name_phases, METH_VARARGS, "name_phases(first, where): log named phases"},
    {"follow_contexts", (PyCFunction)tap_follow_contexts, METH_NOARGS, "take the mark of calls from their context"},
    {"exclude", (PyCFunction)tap_exclude, METH_O, "exclude(excluded): stop recording this thread's calls, or resume"},
    {"describe", (PyCFunction)tap_describe, METH_VARARGS, "describe(args, kwargs) -> number of the row"},
    {"describe_output", (PyCFunction)tap_describe_output, METH_O, "describe_output(value) -> number of the row"},
    {"take", (PyCFunction)tap_take, METH_O, "take(thread) -> bytes: a thread's events, removed from its log"},
    {"take_rows", (PyCFunction)tap_take_rows, METH_NOARGS, "take_rows() -> bytes: new descriptions of tensors"},
    {"thread", (PyCFunction)tap_thread, METH_NOARGS, "thread() -> number of this thread"},
    {"threads", (PyCFunction)tap_threads, METH_NOARGS, "threads() -> number of threads"},
    {"totals", (PyCFunction)tap_totals, METH_NOARGS, "totals() -> (calls, usual own ns, skipped calls, unknown calls)"},
    {"own_ns", (PyCFunction)tap_own_ns, METH_NOARGS, "own_ns() -> the recorder's own time on this thread in ns"},
    {"close", (PyCFunction)tap_close, METH_NOARGS, "close(): stop watching all modules"},
    {NULL, NULL, 0, NULL}};

static PyMemberDef tap_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Tap, vectorcall), READONLY, NULL}, {NULL, 0, 0, 0, NULL}};

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

static PyType_Spec tap_spec = {"talkerviz.recorder._tap.Tap", sizeof(Tap), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                                   Py_TPFLAGS_METHOD_DESCRIPTOR,
                               tap_slots};

static int prepare(PyObject *module) {
  PyObject *type = PyType_FromSpec(&tap_spec);
  if (type == NULL) return -1;
  int failed = PyModule_AddObjectRef(module, "Tap", type);
  Py_DECREF(type);
  if (failed == 0) stamps_type = device_stamps_type(module);
  return failed || stamps_type == NULL ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, (void *)prepare}, {0, NULL}};
static struct PyModuleDef tap_module = {PyModuleDef_HEAD_INIT, "_tap", NULL, 0, NULL, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__tap(void) { return PyModuleDef_Init(&tap_module); }
