/* A made-up CUDA runtime: the functions by which calls are stamped, on devices that run behind the host. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

enum { DEVICES = 2, INVALID = 400, NOT_READY = 600, CAPTURED = 901 };

typedef struct {
  int device;
  int capturing;
} Stream;

typedef struct {
  int device; /* -1 before the first record */
  int64_t passed;
} Event;

static int64_t busy_until[DEVICES];
static int current, last_error, broken;
static long made, recorded, destroyed;

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int result(int code) {
  if (code != 0) last_error = code;
  return code;
}

int cudaEventCreateWithFlags(void **event, unsigned flags) {
  (void)flags;
  Event *made_event = malloc(sizeof(Event));
  *made_event = (Event){-1, 0};
  *event = made_event;
  made++;
  return 0;
}

int cudaEventRecord(void *event, void *stream) {
  Event *of = event;
  Stream *on = stream;
  int device = on == NULL ? current : on->device; /* the default stream is the current device's */
  if (broken) return result(broken);
  if (on != NULL && on->capturing) return result(CAPTURED);
  if (of->device >= 0 && of->device != device) return result(INVALID);
  of->device = device;
  int64_t time = now();
  if (busy_until[device] < time) busy_until[device] = time;
  of->passed = busy_until[device];
  recorded++;
  return 0;
}

int cudaEventQuery(void *event) { return result(((Event *)event)->passed <= now() ? 0 : NOT_READY); }

int cudaEventElapsedTime(float *milliseconds, void *start, void *end) {
  Event *from = start, *to = end;
  if (from->device != to->device || from->device < 0) return result(INVALID);
  if (from->passed > now() || to->passed > now()) return result(NOT_READY);
  *milliseconds = (float)((double)(to->passed - from->passed) / 1e6);
  return 0;
}

int cudaEventDestroy(void *event) {
  free(event);
  destroyed++;
  return 0;
}

int cudaGetDevice(int *device) {
  *device = current;
  return 0;
}

int cudaSetDevice(int device) {
  if (device < 0 || device >= DEVICES) return result(101);
  current = device;
  return 0;
}

int cudaStreamIsCapturing(void *stream, int *status) {
  *status = stream != NULL && ((Stream *)stream)->capturing;
  return 0;
}

int cudaGetLastError(void) {
  int code = last_error;
  last_error = 0;
  return code;
}

/* What the tests do with it. */

void work(int device, int64_t ns) {
  int64_t time = now();
  busy_until[device] = (busy_until[device] < time ? time : busy_until[device]) + ns;
}

void synchronize(int device) {
  while (now() < busy_until[device]) {
  }
}

void *make_stream(int device) {
  Stream *stream = malloc(sizeof(Stream));
  *stream = (Stream){device, 0};
  return stream;
}

void set_capturing(void *stream, int capturing) { ((Stream *)stream)->capturing = capturing; }

void break_records(int code) { broken = code; }

long count(int what) { return what == 0 ? made : what == 1 ? recorded : what == 2 ? destroyed : last_error; }
