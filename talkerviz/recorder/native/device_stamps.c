#include "device_stamps.h"

#include "describe.h"

#include <math.h>
#include <string.h>

#define MAX_NS_FROM_ANCHOR 100000000 /* elapsed times are floats of milliseconds: exact to nanoseconds only over 0.1 s */
#define READS_PER_STAMP 2            /* more than the one event that a stamp takes, so that none pile up */
#define KEPT_WAITING 128             /* latest events, which the device has likely not passed yet */
#define SKIPPED_READS 16             /* stamps without a try to read, after one that found nothing passed */
#define MORE_EVENTS 64               /* events made at once when none is free */
#define MEASURED_FRAMES 3            /* frames, after the first, by which `every` is chosen */
#define MIN_STAMP_SHARE 0.01         /* of a frame's time, for stamps, if the tap alone takes the whole budget */

enum { NO_TIME = -1 };
enum { NO_DEVICE = -1, SEVERAL_DEVICES = -2, SKIPPED = -3 }; /* in the place of a device */

/* Functions of a runtime, by address. An error code other than 0 is a failure, or of `query` that it has not passed. */
typedef struct {
  int (*create)(void **event, unsigned flags);
  int (*record)(void *event, void *stream);
  int (*query)(void *event);
  int (*elapsed)(float *milliseconds, void *start, void *end);
  int (*destroy)(void *event);
  int (*get_device)(int *device);
  int (*set_device)(int device);
  int (*is_capturing)(void *stream, int *status);
  int (*last_error)(void); /* clears the error, which torch would otherwise raise at its next kernel */
} Runtime;

typedef struct {
  int known;
  void *anchor; /* event from which times are measured */
  int64_t anchor_ns;
  void **free_events;
  Py_ssize_t free_count, room;
} Device;

typedef struct {
  int64_t target; /* index of the stamp; -1 less twice the index of a pause, or one less than that for its end */
  void *event;
  int device;
} Waiting;

typedef struct {
  int64_t stamp; /* number of the thread's stamps before the pause */
  int64_t begin, end;
} Pause;

typedef struct {
  int64_t *times;
  int16_t *devices;
  Py_ssize_t used, room;
  Waiting *waiting; /* a ring */
  Py_ssize_t first, count, waiting_room;
  Pause *pauses;
  Py_ssize_t pause_count, pause_room;
  int16_t *open; /* device of each open call */
  Py_ssize_t open_room;
  int reads_to_skip;
  int device; /* that of the latest stamp */
} Thread;

typedef struct {
  int64_t plain_ns;    /* time without the recorder */
  int64_t recorder_ns; /* time of the recorder, the stamps included; while the frame lasts, that before it */
  int64_t spent_ns;    /* time of the stamps */
  int64_t stamps, of_level[2];
} FrameCost;

struct DeviceStamps {
  PyObject_HEAD Runtime runtime;
  int native;           /* whether events are handles of `runtime` */
  PyObject *make_event; /* () -> event object; unused if native */
  PyObject *stream_of;  /* (device) -> address of its current stream, or a stream object */
  PyObject *current;    /* () -> index of the current device */
  PyObject *capturing;  /* () -> whether the current stream captures a graph; None if none can; unused if native */
  PyObject *on_capture; /* (thread, stamp, depth): called for a stamp on a stream that captures */
  PyObject *record_name, *query_name, *elapsed_name;
  int16_t *module_devices; /* device of each module by number, NO_DEVICE or SEVERAL_DEVICES */
  Py_ssize_t module_count;
  Py_ssize_t ring; /* events made beforehand on each device */
  Device *devices;
  Py_ssize_t device_count;
  Thread **threads;
  Py_ssize_t thread_count;
  int captures;   /* open captures, during which no event is read or made */
  char fault[160];
  /* Choice of the calls that are stamped. */
  double budget; /* share of a frame's time for the recorder; 0 to stamp every call */
  int64_t every; /* 0 until it is chosen */
  int levels;
  int64_t frame, frame_began;
  FrameCost current_frame, fastest_frame;
  int measured; /* frames */
};

/* ---- Events. Functions return 0, or -1 after an exception or a fault; `note_exception` tells them apart. */

static void note_fault(DeviceStamps *self, const char *what, int code) {
  if (self->runtime.last_error != NULL) self->runtime.last_error();
  if (self->fault[0] == '\0') snprintf(self->fault, sizeof(self->fault), "%s failed with error %d", what, code);
}

/* Keeps an exception of an event object as the fault. Returns -1 if it must be propagated. */
static int note_exception(DeviceStamps *self) {
  PyObject *type, *value, *traceback;
  if (!PyErr_Occurred()) return 0;
  if (!PyErr_ExceptionMatches(PyExc_Exception)) return -1;
  PyErr_Fetch(&type, &value, &traceback);
  PyObject *text = value == NULL ? NULL : PyObject_Str(value);
  const char *said = text == NULL ? NULL : PyUnicode_AsUTF8(text);
  if (self->fault[0] == '\0')
    snprintf(self->fault, sizeof(self->fault), "%s", said == NULL ? "an event failed" : said);
  Py_XDECREF(text);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(traceback);
  PyErr_Clear();
  return 0;
}

static void *make_event(DeviceStamps *self) {
  if (!self->native) return PyObject_CallNoArgs(self->make_event);
  void *event = NULL;
  int code = self->runtime.create(&event, 0);
  if (code == 0) return event;
  note_fault(self, "making an event", code);
  return NULL;
}

static void drop_event(DeviceStamps *self, void *event) {
  if (event == NULL) return;
  if (self->native) self->runtime.destroy(event);
  else Py_DECREF((PyObject *)event);
}

/* Records on the current stream of a device, which need not be the current one. `stream` is what `stream_of` gave. */
static int record_event(DeviceStamps *self, void *event, int device, PyObject *stream) {
  if (!self->native) {
    PyObject *answer = PyObject_CallMethodOneArg((PyObject *)event, self->record_name, stream);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
  }
  /* The default stream has no handle of its own: it is that of the current device. */
  int before = device, code = self->runtime.get_device(&before);
  if (code == 0 && before != device) code = self->runtime.set_device(device);
  if (code == 0) code = self->runtime.record(event, PyLong_AsVoidPtr(stream));
  if (before != device) self->runtime.set_device(before);
  if (code != 0) note_fault(self, "recording an event", code);
  return code == 0 ? 0 : -1;
}

/* Returns 1 if the device has passed an event, 0 if not, -1 after an exception. */
static int has_passed(DeviceStamps *self, void *event) {
  if (self->native) {
    int code = self->runtime.query(event);
    if (code != 0) self->runtime.last_error();
    return code == 0;
  }
  PyObject *answer = PyObject_CallMethodNoArgs((PyObject *)event, self->query_name);
  int passed = answer == NULL ? -1 : PyObject_IsTrue(answer);
  Py_XDECREF(answer);
  return passed;
}

/* Returns the time at which the device passed an event, on the host's clock; NO_TIME after an exception or fault. */
static int64_t time_of_event(DeviceStamps *self, int device, void *event) {
  void *anchor = self->devices[device].anchor;
  int64_t anchor_ns = self->devices[device].anchor_ns;
  double milliseconds;
  if (self->native) {
    float elapsed = 0;
    int code = self->runtime.elapsed(&elapsed, anchor, event);
    if (code != 0) {
      note_fault(self, "reading an event", code);
      return NO_TIME;
    }
    milliseconds = elapsed;
  } else {
    Py_INCREF((PyObject *)anchor); /* another thread may replace it meanwhile */
    PyObject *answer = PyObject_CallMethodOneArg((PyObject *)anchor, self->elapsed_name, (PyObject *)event);
    Py_DECREF((PyObject *)anchor);
    milliseconds = answer == NULL ? -1 : PyFloat_AsDouble(answer);
    Py_XDECREF(answer);
    if (PyErr_Occurred()) return NO_TIME;
  }
  return anchor_ns + (int64_t)llround(milliseconds * 1e6);
}

static int keep_free(DeviceStamps *self, int device, void *event) {
  Device *of = &self->devices[device];
  if (of->free_count == of->room) {
    Py_ssize_t room = of->room ? of->room * 2 : 256;
    void **grown = realloc(of->free_events, (size_t)room * sizeof(void *));
    if (grown == NULL) {
      drop_event(self, event);
      return 0;
    }
    of->free_events = grown;
    of->room = room;
  }
  of->free_events[of->free_count++] = event;
  return 0;
}

/* Makes events of a device and records each once, since the first record of an event is slow. */
static int make_events(DeviceStamps *self, int device, PyObject *stream, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; i++) {
    void *event = make_event(self);
    if (event == NULL) return -1;
    if (record_event(self, event, device, stream) < 0) {
      drop_event(self, event);
      return -1;
    }
    keep_free(self, device, event);
  }
  return 0;
}

static void *take_event(DeviceStamps *self, int device, PyObject *stream) {
  Device *of = &self->devices[device];
  if (of->free_count == 0 && (self->captures || make_events(self, device, stream, MORE_EVENTS) < 0)) return NULL;
  of = &self->devices[device];
  return of->free_count ? of->free_events[--of->free_count] : NULL;
}

/* Begins the time line of a device at an event, or moves it there. */
static void set_anchor(DeviceStamps *self, int device, void *event, int64_t time) {
  void *before = self->devices[device].anchor;
  self->devices[device].known = 1;
  self->devices[device].anchor = event;
  self->devices[device].anchor_ns = time;
  drop_event(self, before);
}

/* Returns 0 once the device has a place in `devices`. */
static int find_device(DeviceStamps *self, int device) {
  if (device < 0 || device > INT16_MAX) return -1;
  if (device < self->device_count) return 0;
  Device *grown = realloc(self->devices, (size_t)(device + 1) * sizeof(Device));
  if (grown == NULL) return -1;
  memset(grown + self->device_count, 0, (size_t)(device + 1 - self->device_count) * sizeof(Device));
  self->devices = grown;
  self->device_count = device + 1;
  return 0;
}

/* Begins the time line of a device, if it has none; the host's time of its first event is not exact. */
static int begin_line(DeviceStamps *self, int device, PyObject *stream) {
  if (find_device(self, device) < 0 || self->devices[device].known || self->captures) return 0;
  void *anchor = make_event(self);
  if (anchor == NULL || record_event(self, anchor, device, stream) < 0) {
    drop_event(self, anchor);
    return -1;
  }
  set_anchor(self, device, anchor, clock_ns());
  return 0;
}

/* ---- Stamps of a thread. */

static Thread *thread_of(DeviceStamps *self, Py_ssize_t number) {
  if (number >= self->thread_count) {
    Thread **grown = realloc(self->threads, (size_t)(number + 1) * sizeof(Thread *));
    if (grown == NULL) return NULL;
    memset(grown + self->thread_count, 0, (size_t)(number + 1 - self->thread_count) * sizeof(Thread *));
    self->threads = grown;
    self->thread_count = number + 1;
  }
  if (self->threads[number] == NULL) self->threads[number] = calloc(1, sizeof(Thread));
  return self->threads[number];
}

/* Adds a stamp without a time, to be read later; returns its index, or -1. */
static Py_ssize_t add_stamp(Thread *thread, int device) {
  if (thread->used == thread->room) {
    Py_ssize_t room = thread->room ? thread->room * 2 : 1024;
    int64_t *times = realloc(thread->times, (size_t)room * sizeof(int64_t));
    if (times != NULL) thread->times = times;
    int16_t *devices = times == NULL ? NULL : realloc(thread->devices, (size_t)room * sizeof(int16_t));
    if (devices == NULL) return -1;
    thread->devices = devices;
    thread->room = room;
  }
  thread->times[thread->used] = NO_TIME;
  thread->devices[thread->used] = (int16_t)device;
  return thread->used++;
}

static int add_waiting(Thread *thread, Waiting waiting) {
  if (thread->count == thread->waiting_room) {
    Py_ssize_t room = thread->waiting_room ? thread->waiting_room * 2 : 256;
    Waiting *grown = malloc((size_t)room * sizeof(Waiting));
    if (grown == NULL) return -1;
    for (Py_ssize_t i = 0; i < thread->count; i++)
      grown[i] = thread->waiting[(thread->first + i) & (thread->waiting_room - 1)];
    free(thread->waiting);
    thread->waiting = grown;
    thread->waiting_room = room;
    thread->first = 0;
  }
  thread->waiting[(thread->first + thread->count++) & (thread->waiting_room - 1)] = waiting;
  return 0;
}

static void set_time(Thread *thread, int64_t target, int64_t time) {
  if (target >= 0) thread->times[target] = time;
  else if ((-1 - target) % 2 == 0) thread->pauses[(-1 - target) / 2].begin = time;
  else thread->pauses[(-1 - target) / 2].end = time;
}

/* Reads up to `limit` of the oldest events, if the device has passed them. Returns -1 with an exception set. */
static int read_passed(DeviceStamps *self, Thread *thread, Py_ssize_t limit, int wait) {
  while (limit-- > 0 && thread->count > 0) {
    /* Taken out first: Python code of an event object may let another thread run. */
    Waiting oldest = thread->waiting[thread->first];
    thread->first = (thread->first + 1) & (thread->waiting_room - 1);
    thread->count--;
    int passed = wait ? 1 : has_passed(self, oldest.event);
    if (passed <= 0) {
      thread->first = (thread->first - 1) & (thread->waiting_room - 1);
      thread->count++;
      thread->reads_to_skip = SKIPPED_READS;
      return passed;
    }
    int64_t time = time_of_event(self, oldest.device, oldest.event);
    if (time == NO_TIME && PyErr_Occurred()) {
      drop_event(self, oldest.event);
      return -1;
    }
    set_time(thread, oldest.target, time);
    if (time != NO_TIME && time - self->devices[oldest.device].anchor_ns >= MAX_NS_FROM_ANCHOR)
      set_anchor(self, oldest.device, oldest.event, time);
    else keep_free(self, oldest.device, oldest.event);
  }
  return 0;
}

/* Records an event for a target on a device; the capture of a graph gets it through `on_capture`. */
static int record_stamp(DeviceStamps *self, Thread *thread, Py_ssize_t number, int64_t target, int device, int depth) {
  PyObject *index = PyLong_FromLong(device);
  PyObject *stream = index == NULL ? NULL : PyObject_CallOneArg(self->stream_of, index);
  Py_XDECREF(index);
  if (stream == NULL) return -1;
  int captures = 0, failed = 0;
  if (self->native) {
    int code = self->runtime.is_capturing(PyLong_AsVoidPtr(stream), &captures);
    if (code != 0) { /* another stream captures, and this is the default stream, which must not be touched */
      self->runtime.last_error();
      Py_DECREF(stream);
      return 0;
    }
  } else if (self->capturing != Py_None) {
    PyObject *answer = PyObject_CallNoArgs(self->capturing);
    captures = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
  }
  if (captures < 0) {
    failed = -1;
  } else if (captures) {
    if (target >= 0) {
      PyObject *answer = PyObject_CallFunction(self->on_capture, "nLi", number, (long long)target, depth);
      failed = answer == NULL ? -1 : 0;
      Py_XDECREF(answer);
    }
  } else if (find_device(self, device) == 0) {
    failed = begin_line(self, device, stream);
    void *event = failed || !self->devices[device].known ? NULL : take_event(self, device, stream);
    if (event != NULL && record_event(self, event, device, stream) < 0) drop_event(self, event), event = NULL;
    if (event == NULL || add_waiting(thread, (Waiting){target, event, device}) < 0) failed = PyErr_Occurred() ? -1 : 0;
  }
  Py_DECREF(stream);
  return failed;
}

/* ---- Choice of calls. */

/* Chooses `every` and `levels` from a frame all of whose calls were stamped. */
static void choose(DeviceStamps *self, const FrameCost *frame) {
  double plain = (double)frame->plain_ns, all = (double)frame->spent_ns / plain;
  double left = self->budget - ((double)frame->recorder_ns / plain - all);
  if (left < MIN_STAMP_SHARE) left = MIN_STAMP_SHARE;
  if (all <= left) {
    self->every = 1;
    return;
  }
  double first = all * (double)frame->of_level[0] / (double)frame->stamps;
  double second = first + all * (double)frame->of_level[1] / (double)frame->stamps;
  self->levels = second <= left / 2 ? 2 : 1;
  double always = self->levels == 2 ? second : first;
  double others = left - always < left / 4 ? left / 4 : left - always;
  self->every = (int64_t)ceil((all - always) / others);
  if (self->every < 1) self->every = 1;
}

static void begin_frame(DeviceStamps *self, const StampedCall *call) {
  int64_t now = clock_ns();
  FrameCost *ended = &self->current_frame;
  if (self->frame > 0 && call->frame == self->frame + 1 && ended->stamps > 0) { /* the first frame is slow */
    ended->recorder_ns = call->recorder_ns - ended->recorder_ns;
    ended->plain_ns = now - self->frame_began - ended->recorder_ns;
    /* The fastest: another process may have held up the others. */
    if (ended->plain_ns > 0 && (self->measured == 0 || ended->plain_ns < self->fastest_frame.plain_ns))
      self->fastest_frame = *ended;
    if (ended->plain_ns > 0 && ++self->measured == MEASURED_FRAMES) choose(self, &self->fastest_frame);
  }
  self->frame = call->frame;
  self->frame_began = now;
  self->current_frame = (FrameCost){.recorder_ns = call->recorder_ns};
}

static int is_stamped(const DeviceStamps *self, const StampedCall *call) {
  return self->every <= 1 || call->depth < self->levels || call->frame < 0 || call->frame % self->every == 0;
}

/* Returns the device of a call at its entry, or one of the constants in the place of one. */
static int device_of(DeviceStamps *self, const StampedCall *call) {
  if (!is_stamped(self, call)) return SKIPPED;
  int device = call->module >= 0 && call->module < self->module_count ? self->module_devices[call->module] : NO_DEVICE;
  if (device == NO_DEVICE) device = call->tensor_device;
  if (device != NO_DEVICE) return device;
  PyObject *current = PyObject_CallNoArgs(self->current);
  device = current == NULL ? NO_DEVICE : (int)PyLong_AsLong(current);
  Py_XDECREF(current);
  return device;
}

static int stamp_on(DeviceStamps *self, Thread *thread, Py_ssize_t number, int device, int depth) {
  Py_ssize_t stamp = add_stamp(thread, device);
  if (stamp < 0 || device < 0 || self->fault[0] != '\0') return 0;
  thread->device = device;
  if (record_stamp(self, thread, number, stamp, device, depth) < 0) return -1;
  if (thread->count <= KEPT_WAITING || self->captures) return 0;
  if (thread->reads_to_skip > 0) {
    thread->reads_to_skip--;
    return 0;
  }
  return read_passed(self, thread, READS_PER_STAMP, 0);
}

static int go_on(DeviceStamps *self, int failed) { return failed < 0 && note_exception(self) < 0 ? -1 : 0; }

int device_stamp(DeviceStamps *self, Py_ssize_t number, int entry, const StampedCall *call) {
  Thread *thread = thread_of(self, number);
  if (thread == NULL) return 0;
  if (call->depth >= thread->open_room) {
    Py_ssize_t room = call->depth < 32 ? 64 : (Py_ssize_t)call->depth * 2;
    int16_t *grown = realloc(thread->open, (size_t)room * sizeof(int16_t));
    if (grown == NULL) return 0;
    thread->open = grown;
    thread->open_room = room;
  }
  int chooses = self->every == 0 && number == 0, device;
  if (entry) {
    if (chooses && call->frame != self->frame) begin_frame(self, call);
    device = device_of(self, call);
    if (PyErr_Occurred() && go_on(self, -1) < 0) return -1;
    thread->open[call->depth] = (int16_t)device;
  } else {
    device = thread->open[call->depth];
  }
  if (!chooses) return go_on(self, stamp_on(self, thread, number, device, call->depth));
  int64_t began = clock_ns();
  int failed = stamp_on(self, thread, number, device, call->depth);
  self->current_frame.spent_ns += clock_ns() - began;
  self->current_frame.stamps++;
  if (call->depth < 2) self->current_frame.of_level[call->depth]++;
  return go_on(self, failed);
}

int device_pause(DeviceStamps *self, Py_ssize_t number, int begins) {
  Thread *thread = thread_of(self, number);
  if (thread == NULL || self->fault[0] != '\0') return 0;
  if (begins) {
    if (thread->pause_count == thread->pause_room) {
      Py_ssize_t room = thread->pause_room ? thread->pause_room * 2 : 16;
      Pause *grown = realloc(thread->pauses, (size_t)room * sizeof(Pause));
      if (grown == NULL) return 0;
      thread->pauses = grown;
      thread->pause_room = room;
    }
    thread->pauses[thread->pause_count++] = (Pause){thread->used, NO_TIME, NO_TIME};
  }
  /* Nothing runs between the two events but what was launched before: in that time the device waited. */
  if (thread->pause_count == 0) return 0;
  int64_t target = -1 - 2 * (int64_t)(thread->pause_count - 1) - !begins;
  return go_on(self, record_stamp(self, thread, number, target, thread->device, 0));
}

/* ---- The Python type. */

static PyObject *none_or_null(DeviceStamps *self, int failed) {
  if (go_on(self, failed) < 0) return NULL;
  Py_RETURN_NONE;
}

static PyObject *stamps_stamp_call(DeviceStamps *self, PyObject *args) {
  Py_ssize_t thread;
  int entry;
  long long frame, recorder_ns;
  StampedCall call;
  if (!PyArg_ParseTuple(args, "npiiiLL", &thread, &entry, &call.depth, &call.module, &call.tensor_device, &frame,
                        &recorder_ns))
    return NULL;
  call.frame = frame;
  call.recorder_ns = recorder_ns;
  if (device_stamp(self, thread, entry, &call) < 0) return NULL;
  Py_RETURN_NONE;
}

static PyObject *stamps_stamp(DeviceStamps *self, PyObject *args) {
  Py_ssize_t number;
  if (!PyArg_ParseTuple(args, "n", &number)) return NULL;
  Thread *thread = thread_of(self, number);
  PyObject *current = thread == NULL ? NULL : PyObject_CallNoArgs(self->current);
  int device = current == NULL ? NO_DEVICE : (int)PyLong_AsLong(current);
  Py_XDECREF(current);
  if (PyErr_Occurred() || thread == NULL) return none_or_null(self, -1);
  return none_or_null(self, stamp_on(self, thread, number, device, 0));
}

static PyObject *stamps_pause(DeviceStamps *self, PyObject *args) {
  Py_ssize_t thread;
  int begins;
  if (!PyArg_ParseTuple(args, "np", &thread, &begins)) return NULL;
  if (device_pause(self, thread, begins) < 0) return NULL;
  Py_RETURN_NONE;
}

static PyObject *stamps_begin_line(DeviceStamps *self, PyObject *args) {
  int device;
  PyObject *stream;
  if (!PyArg_ParseTuple(args, "iO", &device, &stream)) return NULL;
  return none_or_null(self, begin_line(self, device, stream));
}

static PyObject *stamps_prepare(DeviceStamps *self, PyObject *args) {
  int device;
  PyObject *stream;
  if (!PyArg_ParseTuple(args, "iO", &device, &stream)) return NULL;
  if (find_device(self, device) < 0 || make_events(self, device, stream, self->ring) < 0) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, self->fault);
    return NULL;
  }
  Py_RETURN_NONE;
}

/* Records an event and returns the host's time before and after the device has passed it, and keeps it as the anchor or
   returns its time on the line. */
static PyObject *stamps_ping(DeviceStamps *self, PyObject *args) {
  int device, begins;
  PyObject *synchronize, *stream;
  if (!PyArg_ParseTuple(args, "iOOp", &device, &stream, &synchronize, &begins)) return NULL;
  if (find_device(self, device) < 0) return PyErr_Format(PyExc_ValueError, "no device %d", device);
  void *event = make_event(self);
  PyObject *answer = event == NULL ? NULL : PyObject_CallFunction(synchronize, "i", device);
  int64_t before = 0, after = 0, time = 0;
  if (answer != NULL) {
    Py_DECREF(answer);
    before = clock_ns();
    answer = record_event(self, event, device, stream) < 0 ? NULL : PyObject_CallFunction(synchronize, "i", device);
    after = clock_ns();
  }
  if (answer != NULL && !begins) time = time_of_event(self, device, event);
  if (answer == NULL || PyErr_Occurred()) {
    Py_XDECREF(answer);
    drop_event(self, event);
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, self->fault);
    return NULL;
  }
  Py_DECREF(answer);
  if (begins) set_anchor(self, device, event, (before + after) / 2);
  else drop_event(self, event);
  return Py_BuildValue("LLL", (long long)before, (long long)after, (long long)time);
}

static PyObject *stamps_time_of(DeviceStamps *self, PyObject *args) {
  int device;
  PyObject *event;
  if (!PyArg_ParseTuple(args, "iO", &device, &event)) return NULL;
  if (device < 0 || device >= self->device_count || !self->devices[device].known)
    return PyErr_Format(PyExc_ValueError, "no time line of device %d", device);
  void *handle = event;
  if (self->native) {
    PyObject *address = PyObject_GetAttrString(event, "cuda_event");
    handle = address == NULL ? NULL : PyLong_AsVoidPtr(address);
    Py_XDECREF(address);
    if (PyErr_Occurred()) return NULL;
  }
  int64_t time = time_of_event(self, device, handle);
  if (time == NO_TIME && !PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, self->fault);
  return PyErr_Occurred() ? NULL : PyLong_FromLongLong(time);
}

static PyObject *stamps_forget_device(DeviceStamps *self, PyObject *args) {
  Py_ssize_t module;
  if (!PyArg_ParseTuple(args, "n", &module)) return NULL;
  if (module >= 0 && module < self->module_count) self->module_devices[module] = NO_DEVICE;
  Py_RETURN_NONE;
}

static PyObject *stamps_hold(DeviceStamps *self, PyObject *args) {
  int change;
  if (!PyArg_ParseTuple(args, "i", &change)) return NULL;
  self->captures += change;
  Py_RETURN_NONE;
}

static PyObject *stamps_settle(DeviceStamps *self, PyObject *Py_UNUSED(ignored)) {
  for (Py_ssize_t i = 0; i < self->thread_count; i++)
    if (self->threads[i] != NULL && read_passed(self, self->threads[i], PY_SSIZE_T_MAX, 1) < 0) return NULL;
  Py_RETURN_NONE;
}

static PyObject *stamps_take(DeviceStamps *self, PyObject *number) {
  static const Thread none;
  Py_ssize_t at = PyLong_AsSsize_t(number);
  if (at < 0 && PyErr_Occurred()) return NULL;
  const Thread *thread = at >= 0 && at < self->thread_count && self->threads[at] != NULL ? self->threads[at] : &none;
  PyObject *times = PyBytes_FromStringAndSize((char *)thread->times, thread->used * (Py_ssize_t)sizeof(int64_t));
  PyObject *devices = PyBytes_FromStringAndSize((char *)thread->devices, thread->used * (Py_ssize_t)sizeof(int16_t));
  PyObject *pauses = PyBytes_FromStringAndSize((char *)thread->pauses, thread->pause_count * (Py_ssize_t)sizeof(Pause));
  if (times != NULL && devices != NULL && pauses != NULL) return Py_BuildValue("NNN", times, devices, pauses);
  Py_XDECREF(times);
  Py_XDECREF(devices);
  Py_XDECREF(pauses);
  return NULL;
}

static PyObject *stamps_count(DeviceStamps *self, PyObject *number) {
  Py_ssize_t at = PyLong_AsSsize_t(number);
  if (at < 0 && PyErr_Occurred()) return NULL;
  return PyLong_FromSsize_t(at < self->thread_count && self->threads[at] != NULL ? self->threads[at]->used : 0);
}

static PyObject *stamps_threads(DeviceStamps *self, PyObject *Py_UNUSED(ignored)) {
  return PyLong_FromSsize_t(self->thread_count);
}

static PyObject *stamps_lines(DeviceStamps *self, PyObject *Py_UNUSED(ignored)) {
  PyObject *lines = PyList_New(0);
  for (Py_ssize_t i = 0; lines != NULL && i < self->device_count; i++) {
    if (!self->devices[i].known) continue;
    PyObject *device = PyLong_FromSsize_t(i);
    if (device == NULL || PyList_Append(lines, device) < 0) Py_CLEAR(lines);
    Py_XDECREF(device);
  }
  return lines;
}

static PyObject *stamps_sampling(DeviceStamps *self, PyObject *Py_UNUSED(ignored)) {
  return Py_BuildValue("Li", (long long)(self->every ? self->every : 1), self->levels);
}

static PyObject *stamps_get_fault(DeviceStamps *self, void *Py_UNUSED(closure)) {
  return PyUnicode_DecodeUTF8(self->fault, (Py_ssize_t)strlen(self->fault), "replace");
}

static void stamps_release_events(DeviceStamps *self) {
  for (Py_ssize_t i = 0; i < self->thread_count; i++) {
    Thread *thread = self->threads[i];
    for (; thread != NULL && thread->count > 0; thread->count--) {
      drop_event(self, thread->waiting[thread->first].event);
      thread->first = (thread->first + 1) & (thread->waiting_room - 1);
    }
  }
  for (Py_ssize_t i = 0; i < self->device_count; i++) {
    Device *device = &self->devices[i];
    while (device->free_count > 0) drop_event(self, device->free_events[--device->free_count]);
    drop_event(self, device->anchor);
    device->anchor = NULL;
    device->known = 0;
  }
}

static PyObject **held(DeviceStamps *self, int at) {
  PyObject **all[] = {&self->make_event, &self->stream_of,   &self->current,    &self->capturing,
                      &self->on_capture, &self->record_name, &self->query_name, &self->elapsed_name};
  return at < (int)(sizeof(all) / sizeof(*all)) ? all[at] : NULL;
}

static int stamps_traverse(DeviceStamps *self, visitproc visit, void *arg) {
  for (int i = 0; held(self, i) != NULL; i++) Py_VISIT(*held(self, i));
  Py_VISIT(Py_TYPE(self));
  return 0;
}

static int stamps_clear(DeviceStamps *self) {
  for (int i = 0; held(self, i) != NULL; i++) Py_CLEAR(*held(self, i));
  return 0;
}

static void stamps_dealloc(DeviceStamps *self) {
  PyObject_GC_UnTrack(self);
  stamps_release_events(self);
  stamps_clear(self);
  for (Py_ssize_t i = 0; i < self->thread_count; i++) {
    if (self->threads[i] == NULL) continue;
    free(self->threads[i]->times);
    free(self->threads[i]->devices);
    free(self->threads[i]->waiting);
    free(self->threads[i]->pauses);
    free(self->threads[i]->open);
    free(self->threads[i]);
  }
  for (Py_ssize_t i = 0; i < self->device_count; i++) free(self->devices[i].free_events);
  free(self->threads);
  free(self->devices);
  free(self->module_devices);
  PyTypeObject *type = Py_TYPE(self);
  type->tp_free((PyObject *)self);
  Py_DECREF(type);
}

/* Sets the runtime's functions from a mapping of names to addresses. Returns -1 with an exception set. */
static int set_runtime(Runtime *runtime, PyObject *functions) {
  const struct {
    const char *name;
    void **slot;
  } slots[] = {{"create", (void **)&runtime->create},         {"record", (void **)&runtime->record},
               {"query", (void **)&runtime->query},           {"elapsed", (void **)&runtime->elapsed},
               {"destroy", (void **)&runtime->destroy},       {"get_device", (void **)&runtime->get_device},
               {"set_device", (void **)&runtime->set_device}, {"is_capturing", (void **)&runtime->is_capturing},
               {"last_error", (void **)&runtime->last_error}};
  for (size_t i = 0; i < sizeof(slots) / sizeof(*slots); i++) {
    PyObject *address = PyMapping_GetItemString(functions, slots[i].name);
    if (address == NULL) return -1;
    *slots[i].slot = PyLong_AsVoidPtr(address);
    Py_DECREF(address);
    if (PyErr_Occurred()) return -1;
    if (*slots[i].slot == NULL) {
      PyErr_Format(PyExc_ValueError, "the runtime has no function for %s", slots[i].name);
      return -1;
    }
  }
  return 0;
}

static PyObject *stamps_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  static char *names[] = {"functions",  "make_event",     "stream_of", "current", "capturing",
                          "on_capture", "module_devices", "ring",      "budget",  NULL};
  PyObject *functions, *given[5];
  Py_buffer modules;
  Py_ssize_t ring;
  double budget;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOOy*nd", names, &functions, &given[0], &given[1], &given[2],
                                   &given[3], &given[4], &modules, &ring, &budget))
    return NULL;
  DeviceStamps *self = (DeviceStamps *)type->tp_alloc(type, 0);
  if (self != NULL) {
    self->native = functions != Py_None;
    for (int i = 0; i < 5; i++) *held(self, i) = Py_NewRef(given[i]);
    self->record_name = PyUnicode_InternFromString("record");
    self->query_name = PyUnicode_InternFromString("query");
    self->elapsed_name = PyUnicode_InternFromString("elapsed_time");
    self->module_count = modules.len / (Py_ssize_t)sizeof(int16_t);
    self->module_devices = malloc((size_t)modules.len + 1);
    if (self->module_devices != NULL) memcpy(self->module_devices, modules.buf, (size_t)modules.len);
    else self->module_count = 0;
    self->ring = ring;
    self->budget = budget;
    self->every = budget > 0 ? 0 : 1;
    self->levels = 2;
    self->frame = -1;
    if (self->native && set_runtime(&self->runtime, functions) < 0) {
      Py_DECREF(self);
      self = NULL;
    }
  }
  PyBuffer_Release(&modules);
  return (PyObject *)self;
}

static PyMethodDef stamps_methods[] = {
    {"stamp_call", (PyCFunction)stamps_stamp_call, METH_VARARGS,
     "stamp_call(thread, entry, depth, module, tensor_device, frame, recorder_ns): stamp the entry or exit of a call"},
    {"stamp", (PyCFunction)stamps_stamp, METH_VARARGS, "stamp(thread): stamp on the current device"},
    {"pause", (PyCFunction)stamps_pause, METH_VARARGS, "pause(thread, begins): stamp a pause of the recorder"},
    {"begin_line", (PyCFunction)stamps_begin_line, METH_VARARGS,
     "begin_line(device, stream): begin the time line of a device"},
    {"prepare", (PyCFunction)stamps_prepare, METH_VARARGS, "prepare(device, stream): make the events of a device"},
    {"ping", (PyCFunction)stamps_ping, METH_VARARGS,
     "ping(device, stream, synchronize, begins) -> (host time before, after, time on the line) of an event"},
    {"time_of", (PyCFunction)stamps_time_of, METH_VARARGS, "time_of(device, event) -> its time on the line in ns"},
    {"forget_device", (PyCFunction)stamps_forget_device, METH_VARARGS,
     "forget_device(module): take the device of a module's calls from their tensors from here on"},
    {"hold", (PyCFunction)stamps_hold, METH_VARARGS, "hold(1) or hold(-1): a capture, which bars reading, begins, ends"},
    {"settle", (PyCFunction)stamps_settle, METH_NOARGS, "settle(): read all events; the devices have passed them"},
    {"take", (PyCFunction)stamps_take, METH_O, "take(thread) -> bytes of times, of devices, of pauses"},
    {"count", (PyCFunction)stamps_count, METH_O, "count(thread) -> number of its stamps"},
    {"threads", (PyCFunction)stamps_threads, METH_NOARGS, "threads() -> number of threads"},
    {"lines", (PyCFunction)stamps_lines, METH_NOARGS, "lines() -> devices with a time line"},
    {"sampling", (PyCFunction)stamps_sampling, METH_NOARGS, "sampling() -> (every, levels)"},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef stamps_getters[] = {
    {"fault", (getter)stamps_get_fault, NULL, "reason for which stamps have ended; empty for none", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot stamps_slots[] = {{Py_tp_new, stamps_new},           {Py_tp_dealloc, stamps_dealloc},
                                     {Py_tp_traverse, stamps_traverse}, {Py_tp_clear, stamps_clear},
                                     {Py_tp_methods, stamps_methods},   {Py_tp_getset, stamps_getters},
                                     {0, NULL}};

static PyType_Spec stamps_spec = {"talkerviz.recorder._tap.DeviceStamps", sizeof(DeviceStamps), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, stamps_slots};

PyTypeObject *device_stamps_type(PyObject *module) {
  PyObject *type = PyType_FromSpec(&stamps_spec);
  if (type != NULL && PyModule_AddObjectRef(module, "DeviceStamps", type) < 0) Py_CLEAR(type);
  return (PyTypeObject *)type;
}
